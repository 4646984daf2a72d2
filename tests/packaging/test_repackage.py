# SPDX-License-Identifier: Apache-2.0
"""The repackaging of Detectron2 0.5, on a tiny stand-in for its sdist."""

import hashlib
import io
import tarfile
import zipfile

import pytest

SOURCE = {
    "LICENSE": "Apache License",
    "setup.py": "import torch",
    "detectron2/__init__.py": '__version__ = "0.5"\n',
    "detectron2/data/transforms/transform.py": "def f(interp=Image.LINEAR): pass\n",
    "detectron2/data/build.py": "np.zeros(n, dtype=np.int), np.bool_, np.float32, np.str\n",
    "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "detectron2/model_zoo/model_zoo.py": (
        "import os\nimport pkg_resources\n\n"
        "def path_of(config_path):\n"
        "    return pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )\n"
    ),
}


def fake_sdist(source):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in source.items():
            member = tarfile.TarInfo(f"detectron2_cdo-0.5/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def wheel(repackage, tmp_path, monkeypatch):
    monkeypatch.setattr(repackage, "fetch_sdist", lambda: fake_sdist(SOURCE))
    with zipfile.ZipFile(tmp_path / repackage.build_wheel(tmp_path)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_package_its_yaml_files_and_the_stand_in_but_no_setup_script(wheel):
    names = {name for name in wheel if ".dist-info" not in name}
    assert names == {n for n in SOURCE if n.startswith("detectron2/")} | {"detectron2/_C.py"}


def test_wheel_metadata_asks_for_no_black_no_future_and_no_upper_bound_of_iopath(wheel):
    metadata = wheel["detectron2-0.5.dist-info/METADATA"].decode()
    assert "Name: detectron2\nVersion: 0.5\n" in metadata
    assert "Requires-Dist: iopath>=0.1.7\n" in metadata
    assert "black" not in metadata
    assert "future" not in metadata


def test_wheel_record_lists_every_file(wheel):
    record = wheel["detectron2-0.5.dist-info/RECORD"].decode().splitlines()
    assert {line.split(",")[0] for line in record} == set(wheel)


def test_fixups_replace_the_name_that_pillow_removed(wheel):
    text = wheel["detectron2/data/transforms/transform.py"].decode()
    assert text.endswith("def f(interp=Image.BILINEAR): pass\n")


def test_fixups_replace_numpy_aliases_of_builtins_and_nothing_else(wheel):
    text = wheel["detectron2/data/build.py"].decode()
    assert text.endswith("np.zeros(n, dtype=int), np.bool_, np.float32, str\n")


def test_fixed_model_zoo_finds_configs_beside_its_module(wheel, tmp_path):
    text = wheel["detectron2/model_zoo/model_zoo.py"].decode()
    scope = {"__file__": str(tmp_path / "model_zoo.py")}
    exec(text, scope)
    assert scope["path_of"]("Base.yaml") == str(tmp_path / "configs" / "Base.yaml")
    assert "pkg_resources" not in text


def test_changed_files_say_so_and_others_are_as_they_were(wheel, fixups):
    assert wheel["detectron2/data/build.py"].decode().startswith(fixups.NOTICE)
    assert wheel["detectron2/__init__.py"].decode() == SOURCE["detectron2/__init__.py"]


def test_fixup_that_finds_nothing_to_change_is_an_error(fixups):
    with pytest.raises(ValueError, match=r"expected to find .*Image\\.LINEAR.*, got none"):
        fixups.apply_fixups({"detectron2/data/transforms/transform.py": b"pass\n"})


def test_sdist_of_another_sha256_is_refused_with_expected_and_got(repackage):
    got = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"expected sha256 {repackage.SDIST_SHA256}, got {got}"):
        repackage.checked(b"other")


def test_sdist_of_the_right_sha256_is_taken(repackage):
    assert repackage.checked(b"same", hashlib.sha256(b"same").hexdigest()) == b"same"


def test_package_index_of_the_users_pip_is_taken_from_its_environment(repackage, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    assert repackage.pip_option("index-url") == "https://index.example/simple"


def test_package_index_of_the_users_pip_is_taken_from_its_configuration_file(
    repackage, monkeypatch, tmp_path
):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://index.example/simple\n")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert repackage.pip_option("index-url") == "https://index.example/simple"
    assert repackage.pip_option("no-such-option") is None


def test_missing_op_says_what_is_missing_and_how_to_get_it(missing_ops):
    with pytest.raises(NotImplementedError, match=r"_C\.box_iou_rotated is missing.*pip install"):
        missing_ops.box_iou_rotated(1, 2)


def test_missing_coco_op_names_the_way_around_it(missing_ops):
    with pytest.raises(NotImplementedError, match="use_fast_impl=False"):
        missing_ops.COCOevalEvaluateImages()


def test_report_on_the_environment_can_ask_the_stand_in(missing_ops):
    assert "without C++ ops" in missing_ops.get_compiler_version()
    assert missing_ops.has_cuda() is False
