# SPDX-License-Identifier: Apache-2.0
import logging
import time
import tracemalloc
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from maploss.data import VOCFolders, load_voc, register_voc

CLASSES = ("cat", "dog")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def make_object(name, box, difficult=None):
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{corners}</bndbox></object>"


def make_xml(*objects):
    size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def make_tree(root, **files):
    """A tree in VOC's layout with one annotation file per keyword; returns its root."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id, content in files.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(content)
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{i}\n" for i in files))
    return str(root)


def test_boxes_become_continuous_and_difficult_is_kept(tmp_path):
    objects = [make_object("dog", (1, 1, 100, 80), 1), make_object("cat", (10, 20, 30, 40), 0)]
    root = make_tree(tmp_path, x=make_xml(*objects), y=make_xml(make_object("cat", (2, 2, 9, 9))))
    first, second = load_voc(VOCFolders(root), "train", CLASSES)
    assert first["file_name"] == str(tmp_path / "JPEGImages" / "x.jpg")
    assert (first["image_id"], first["width"], first["height"]) == ("x", 100, 80)
    assert [a["bbox"] for a in first["annotations"]] == [[0, 0, 100, 80], [9, 19, 30, 40]]
    assert [a["category_id"] for a in first["annotations"]] == [1, 0]
    assert [a["difficult"] for a in first["annotations"]] == [1, 0]
    assert second["annotations"][0]["difficult"] == 0


def test_flawed_boxes_are_clipped_or_dropped_with_one_counted_warning(tmp_path, caplog):
    objects = [
        make_object("cat", (0, 5, 20, 90)),
        make_object("cat", (50, 50, 50, 50)),
        make_object("cat", (150, 5, 160, 9)),
        make_object("cat", (5, 5, 20, 20)),
    ]
    root = make_tree(tmp_path, x=make_xml(*objects))
    with caplog.at_level(logging.WARNING):
        (record,) = load_voc(VOCFolders(root), "train", CLASSES)
    assert [a["bbox"] for a in record["annotations"]] == [[0, 4, 20, 80], [4, 4, 20, 20]]
    assert len(caplog.records) == 1
    assert "1 boxes reached outside" in caplog.text
    assert "2 of zero area were dropped (x)" in caplog.text


def test_other_extensions_names_with_spaces_and_marks_in_the_text_are_read(tmp_path):
    objects = [make_object("cat", (2, 2, 9, 9), "true"), make_object("cat", (2, 2, 9, 9), "false")]
    root = make_tree(tmp_path, **{"my cell": make_xml(*objects), "x": make_xml(), "y": make_xml()})
    for name in ("my cell.PNG", "x.jpeg", "x.jpg"):
        (tmp_path / "JPEGImages" / name).write_bytes(b"")
    lines = "\ufeffmy cell\nx  -1\ny 1\n"
    (tmp_path / "ImageSets/Main/train.txt").write_text(lines, encoding="utf-8")
    records = load_voc(VOCFolders(root), "train", CLASSES)
    assert [x["image_id"] for x in records] == ["my cell", "x", "y"]
    names = [Path(x["file_name"]).name for x in records]
    assert names == ["my cell.PNG", "x.jpg", "y.jpg"]  # y is not there, and asked for as .jpg
    assert [a["difficult"] for a in records[0]["annotations"]] == [1, 0]
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"train\.txt: expected text in UTF-8"):
        load_voc(VOCFolders(root), "train", CLASSES)


def test_malformed_xml_names_the_file(tmp_path):
    root = make_tree(tmp_path, broken="<annotation><size>")
    with pytest.raises(ValueError, match=r"broken\.xml"):
        load_voc(VOCFolders(root), "train", CLASSES)


def test_xml_without_size_or_with_a_word_for_a_number_names_file_and_key(tmp_path):
    root = make_tree(tmp_path, x="<annotation></annotation>")
    with pytest.raises(ValueError, match=r"x\.xml: size/width is None"):
        load_voc(VOCFolders(root), "train", CLASSES)
    root = make_tree(tmp_path, x=make_xml(make_object("cat", ("one", 1, 2, 3))))
    with pytest.raises(ValueError, match=r"x\.xml: bndbox/xmin is 'one'"):
        load_voc(VOCFolders(root), "train", CLASSES)


@pytest.mark.parametrize("width", ["nan", "inf", "0", "-5"])
def test_a_width_that_is_none_names_file_and_key(tmp_path, width):
    root = make_tree(tmp_path, x=make_xml().replace(">100<", f">{width}<"))
    with pytest.raises(ValueError, match=rf"x\.xml: size/width is '{width}'"):
        load_voc(VOCFolders(root), "train", CLASSES)


@pytest.mark.parametrize("corner", ["nan", "-inf"])
def test_a_corner_that_is_not_finite_names_file_and_key(tmp_path, corner):
    root = make_tree(tmp_path, x=make_xml(make_object("cat", (corner, 1, 20, 30))))
    with pytest.raises(ValueError, match=rf"x\.xml: bndbox/xmin is '{corner}'"):
        load_voc(VOCFolders(root), "train", CLASSES)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize(
    "declaration",
    [
        '<!ENTITY l0 "laugh">' + LAUGHS,
        '<!ENTITY l9 "one">',
        '<!ENTITY l9 SYSTEM "file:///etc/passwd">',
        '<!ENTITY % l9 "<!ELEMENT x ANY>">',
        '<!ENTITY % l9 SYSTEM "http://127.0.0.1/x.dtd"> %l9;',
    ],
)
def test_entities_are_refused_at_once(tmp_path, declaration, encoding):
    # A thousand million laughs, where they are expanded.
    text = make_xml(make_object("&l9;", (1, 1, 9, 9)))
    if "%" in declaration:
        text = text.replace("&l9;", "cat")
    root = make_tree(tmp_path, x="")
    start = f'<?xml version="1.0" encoding="{encoding.removesuffix("-le")}"?>'
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    content = f"{mark}{start}<!DOCTYPE annotation [{declaration}]>{text}"
    (tmp_path / "Annotations/x.xml").write_bytes(content.encode(encoding))
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=r"Annotations/x\.xml: expected no entities, got 'l\d'$"):
        load_voc(VOCFolders(root), "train", CLASSES)
    assert time.perf_counter() - begin < 1


def test_an_entity_that_a_file_elsewhere_declares_is_refused(tmp_path):
    text = make_xml(make_object("&cat;", (1, 1, 9, 9)))
    root = make_tree(tmp_path, x='<!DOCTYPE annotation SYSTEM "voc.dtd">' + text)
    with pytest.raises(ValueError, match=r"x\.xml: expected no entities, got 'cat'"):
        load_voc(VOCFolders(root), "train", CLASSES)


def test_attributes_by_default_are_refused(tmp_path):
    # Where they are kept, each of the elements has them.
    declaration = f'<!ATTLIST object x CDATA "{"A" * 100_000}">'
    text = make_xml("<object/>" * 1000)
    root = make_tree(tmp_path, x=f"<!DOCTYPE annotation [{declaration}]>{text}")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.xml: expected no declared attributes, got 'x'$"):
            load_voc(VOCFolders(root), "train", CLASSES)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_document_type_comments_and_the_five_known_entities_are_read(tmp_path):
    text = "<!DOCTYPE annotation>" + make_xml(make_object("a &amp;&#38; <!-- x -->b", (1, 1, 9, 9)))
    root = make_tree(tmp_path, x=text)
    (record,) = load_voc(VOCFolders(root), "train", ["a && b"])
    assert len(record["annotations"]) == 1


def test_an_unknown_encoding_names_the_file(tmp_path):
    root = make_tree(tmp_path, x='<?xml version="1.0" encoding="klingon"?>' + make_xml())
    with pytest.raises(ValueError, match=r"x\.xml.*klingon"):
        load_voc(VOCFolders(root), "train", CLASSES)


def test_missing_xml_names_the_file(tmp_path):
    root = make_tree(tmp_path, x=make_xml())
    (tmp_path / "Annotations" / "x.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 'x'.*x\.xml"):
        load_voc(VOCFolders(root), "train", CLASSES)


def test_unknown_class_names_class_and_file(tmp_path):
    root = make_tree(tmp_path, x=make_xml(make_object("cow", (1, 1, 9, 9))))
    with pytest.raises(ValueError, match=r"Unknown class 'cow' in .*x\.xml.*'cat', 'dog'"):
        load_voc(VOCFolders(root), "train", CLASSES)


def test_empty_and_missing_split_name_the_file(tmp_path):
    root = make_tree(tmp_path)
    with pytest.raises(ValueError, match=r"Empty split: .*train\.txt"):
        load_voc(VOCFolders(root), "train", CLASSES)
    with pytest.raises(FileNotFoundError, match=r"Split 'val' not found: .*val\.txt"):
        load_voc(VOCFolders(root), "val", CLASSES)


def test_registering_again_replaces_the_data_set(tmp_path):
    root = make_tree(tmp_path, x=make_xml(make_object("cat", (1, 1, 9, 9))))
    register_voc("voc_of_a_test", VOCFolders(root), "train", ("dog", "cat"), "voc07")
    register_voc("voc_of_a_test", VOCFolders(root), "train", CLASSES)
    assert DatasetCatalog.get("voc_of_a_test")[0]["annotations"][0]["category_id"] == 0
    metadata = MetadataCatalog.get("voc_of_a_test")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.ap_type == "area"
    DatasetCatalog.remove("voc_of_a_test")
    MetadataCatalog.remove("voc_of_a_test")


def test_voc_2007_and_2012_are_registered_with_their_ap():
    for name, ap_type in (("voc_2007_test", "voc07"), ("voc_2012_val", "area")):
        assert name in DatasetCatalog
        metadata = MetadataCatalog.get(name)
        assert metadata.ap_type == ap_type
        assert metadata.year == int(name[4:8])
        assert len(metadata.thing_classes) == 20


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not beside the checkout")
def test_real_annotations_load_with_difficult_objects(caplog):
    names = MetadataCatalog.get("voc_2007_val").thing_classes
    records = load_voc(VOCFolders(str(SHARED / "voc2007" / "VOC2007")), "val", names)
    assert len(records) == 500
    flags = [a["difficult"] for record in records for a in record["annotations"]]
    assert 0 < sum(flags) < len(flags) / 2
    with caplog.at_level(logging.WARNING):
        load_voc(VOCFolders(str(SHARED / "bccd")), "trainval", ("RBC", "WBC", "Platelets"))
    assert "2 of zero area were dropped (BloodImage_00338, BloodImage_00343)" in caplog.text


def test_other_folders_and_lists_of_files_are_read_too(tmp_path):
    xml = make_xml(make_object("cat", (2, 2, 9, 9)))
    for name in ("b", "a", "c"):
        (tmp_path / "xml").mkdir(exist_ok=True)
        (tmp_path / f"xml/{name}.xml").write_text(xml)
    folders = VOCFolders(str(tmp_path), "xml", "pictures")
    records = load_voc(folders, "*", CLASSES)
    assert [x["image_id"] for x in records] == ["a", "b", "c"]
    assert records[0]["file_name"] == str(tmp_path / "pictures/a.jpg")
    (tmp_path / "some.txt").write_text("c.png\nb\n")
    assert [x["image_id"] for x in load_voc(folders, "some.txt", CLASSES)] == ["c", "b"]
    elsewhere = tmp_path / "lists/other.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text("a 1\n")
    assert [x["image_id"] for x in load_voc(folders, str(elsewhere), CLASSES)] == ["a"]
    with pytest.raises(FileNotFoundError, match=r"No XML file in .*nowhere"):
        load_voc(VOCFolders(str(tmp_path), "nowhere"), "*", CLASSES)
