"""Models of other programs: nnU-Net's predictor, a MONAI bundle, TotalSegmentator as a stand-in."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fewbeats.errors import InputError
from fewbeats.io.nifti import read_nifti
from fewbeats.scan import ArrayPixels, Scan, Source
from fewbeats.teachers.nnunet import Way
from fewbeats.teachers.program import ByFile
from fewbeats.teachers.specs import open_teacher

SHAPE = (6, 40, 48)
CODES = ("RAS", "LPS", "LAS", "SRA", "PIR")


def write_heart(file: Path, *, codes: str = "LPS", frames: int = 2, spacing=(1.5, 1.5, 1.6)) -> np.ndarray:
    """A volume of gray values 100 times its classes, stored along `codes`; returns these (T, Z, Y, X)."""
    classes = np.zeros((frames, *SHAPE), np.uint8)
    classes[:, 1:5, 8:30, 10:40], classes[:, 2:4, 12:24, 14:26] = 2, 3
    plain = nib.Nifti1Image((classes.astype(np.int16) * 100).T, np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(plain.affine), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(plain.as_reoriented(turn), file)
    return classes


def named(teacher, file: Path) -> np.ndarray:
    return np.stack([labeled.mask for labeled in teacher.label(read_nifti(file))])


def write_nnunet(folder: Path) -> Path:
    """A model folder of nnU-Net v2 with a network of one layer that reads the class off the gray value."""
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip(
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer", reason="nnU-Net is missing"
    )
    assert trainer
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [4, 4], "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 1, 1], [1, 1, 1]], "strides": [[1, 1, 1], [1, 2, 2]],
            "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True,
            "norm_op": None, "norm_op_kwargs": None, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.ReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    resample = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset001_Heart", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "original_median_spacing_after_transp": [1.6, 1.5, 1.5],
        "original_median_shape_after_transp": list(SHAPE),
        "foreground_intensity_properties_per_channel": {
            "0": {"max": 300.0, "mean": 0.0, "median": 0.0, "min": 0.0, "percentile_00_5": 0.0,
                  "percentile_99_5": 300.0, "std": 1.0}},
        "configurations": {"3d_fullres": {
            "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
            "patch_size": [8, 48, 48], "median_image_size_in_voxels": list(SHAPE),
            "spacing": [1.6, 1.5, 1.5], "normalization_schemes": ["NoNormalization"],
            "use_mask_for_norm": [False], "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resample,
            "resampling_fn_seg_kwargs": resample | {"is_seg": True},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resample, "architecture": network, "batch_dice": False}},
    }  # fmt: skip
    dataset = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3},
        "numTraining": 1, "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    built = get_network_from_plans(
        network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"], 1, 4,
        allow_init=True, deep_supervision=False,
    )  # fmt: skip
    weights = {name: torch.zeros_like(value) for name, value in built.state_dict().items()}
    for name, value in weights.items():
        if name.endswith(
            ("encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.0.all_modules.0.weight")
        ):
            value[0] = 0.01  # the class
        if "decoder.stages.0" in name and name.endswith(("conv.weight", "all_modules.0.weight")):
            value[0, 4] = 1.0  # through the skip connection
        if name.endswith("seg_layers.0.weight"):
            value[:, 0, ...] = (2.0 * torch.arange(4.0)).view(4, 1, 1, 1)
        if name.endswith("seg_layers.0.bias"):
            value[:] = -(torch.arange(4.0) ** 2)  # -(x - c)^2 but for what all have in common
    about = {"trainer_name": "nnUNetTrainer", "init_args": {"configuration": "3d_fullres"}}
    about |= {"inference_allowed_mirroring_axes": None, "network_weights": weights}
    torch.save(about, folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.mark.parametrize("codes", CODES)
def test_nnunets_own_predictor_labels_a_scan_of_any_axes(tmp_path, codes):
    folder = write_nnunet(tmp_path / "model")
    classes = write_heart(tmp_path / "ct.nii.gz", codes=codes)
    teacher = open_teacher(f"nnunet:{folder}")
    found = named(teacher, tmp_path / "ct.nii.gz")
    expected = np.array([0, 3, 2, 1])[classes]
    image = read_nifti(tmp_path / "ct.nii.gz")
    assert found.shape == image.shape
    np.testing.assert_array_equal(found, expected)
    told = next(iter(teacher.label(image))).confidence
    assert told is not None
    assert told.shape == SHAPE
    assert told.max() <= 1 + 1e-6


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("codes", CODES)
def test_the_way_to_another_programs_axes_leads_back(tmp_path, codes, turned):
    write_heart(tmp_path / "ct.nii.gz", codes=codes)
    scan = read_nifti(tmp_path / "ct.nii.gz")
    way, frame = Way(scan, turned=turned), np.random.default_rng(0).random(scan.shape[1:])
    there = way.there(frame)
    np.testing.assert_array_equal(way.back(there), frame)
    stored = nib.load(tmp_path / "ct.nii.gz")
    theirs = nib.as_closest_canonical(stored) if turned else stored
    assert there.shape == theirs.shape[2::-1]
    np.testing.assert_allclose(way.spacing_mm, theirs.header.get_zooms()[2::-1], rtol=1e-5)
    np.testing.assert_array_equal(way.there(scan.frame(0)).T, np.asarray(theirs.dataobj)[..., 0])


STAND_IN = """#!/usr/bin/env python3
import sys, nibabel, numpy
words = dict(zip(sys.argv[1::2], sys.argv[2::2])) if "--ml" not in sys.argv else None
at = {word: sys.argv[sys.argv.index(word) + 1] for word in ("-i", "-o", "-ta")}
image = nibabel.load(at["-i"])
assert len(image.shape) == 3, "it takes single frames"
values = numpy.asarray(image.dataobj)
if values.max() > 2500:
    sys.exit("no heart in it")
print(nibabel.aff2axcodes(image.affine), file=open(at["-o"] + ".codes", "w"))
labels = numpy.zeros(values.shape, numpy.uint8)
labels[values >= 150], labels[values >= 250] = 1, 3
nibabel.save(nibabel.as_closest_canonical(nibabel.Nifti1Image(labels, image.affine)), at["-o"])
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program that is called like TotalSegmentator, and a license."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "TotalSegmentator"
    import sys

    file.write_text(STAND_IN.replace("#!/usr/bin/env python3", f"#!{sys.executable}"))
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path))
    (tmp_path / "config.json").write_text('{"license_number": "aca_123"}')
    return tmp_path


def read_ct(file: Path) -> Scan:
    from dataclasses import replace

    return replace(read_nifti(file), modality="CT")


@pytest.mark.parametrize("axes", ["", "heartchambers_highres,axes=LPS", "heartchambers_highres,axes=ASR"])
def test_a_program_labels_frame_by_frame_and_masks_come_back(program, axes):
    classes = write_heart(program / "ct.nii.gz")
    teacher = open_teacher(f"totalsegmentator:{axes}")
    found = np.stack([labeled.mask for labeled in teacher.label(read_ct(program / "ct.nii.gz"))])
    np.testing.assert_array_equal(found, np.array([0, 0, 2, 1])[classes])


def test_a_program_that_fails_on_a_scan_is_told(program):
    write_heart(program / "ct.nii.gz")
    teacher, image = open_teacher("totalsegmentator"), nib.load(program / "ct.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 10, image.affine), program / "ct.nii.gz")
    with pytest.raises(InputError, match=r"failed on frame 0 \(RuntimeError: no heart in it\)"):
        list(teacher.label(read_ct(program / "ct.nii.gz")))
    with pytest.raises(InputError, match="the teacher is for CT"):
        list(teacher.label(read_nifti(program / "ct.nii.gz")))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("totalsegmentator:heartchambers_highres,axes=XYZ", "write axes= and three codes"),
        ("totalsegmentator:lung_vessels", "are not known here"),
        ("nnunet:nowhere", "no model folder of nnU-Net v2"),
        ("monai:nowhere", "it has no configs/inference.json"),
    ],
)
def test_what_is_no_model_is_told(program, spec, told):
    with pytest.raises(InputError, match=told):
        open_teacher(spec)


def test_a_missing_program_or_license_is_told_before_any_work(program, monkeypatch):
    (program / "config.json").write_text("{}")
    with pytest.raises(InputError, match="the task needs a license"):
        open_teacher("totalsegmentator")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(InputError, match="TotalSegmentator is not installed; pip install"):
        open_teacher("totalsegmentator")


BUNDLE = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cpu')",
    "imports": ["$import torch"],
    "network_def": {"_target_": "torch.nn.Identity"},
    "network": "@network_def",
    "preprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}]},
    "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.round(x / 100)"},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
         "nearest_interp": True, "to_tensor": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "print_log": False}]},
    "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
                  "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing"},
    "initialize": ["$torch.manual_seed(0)"],
    "run": ["$@evaluator.run()"],
}  # fmt: skip


def test_a_monai_bundle_runs_its_own_inference(tmp_path):
    pytest.importorskip("ignite", reason="MONAI's engines need pytorch-ignite")
    pytest.importorskip("monai", reason="MONAI is missing")
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(BUNDLE))
    about = {"version": "0", "monai_version": "1.4.0", "pytorch_version": "2", "numpy_version": "2"}
    (folder / "configs" / "metadata.json").write_text(json.dumps(about))
    classes = write_heart(tmp_path / "ct.nii.gz", frames=1)
    with pytest.raises(InputError, match=r"card\.yaml: cannot be read"):
        open_teacher(f"monai:{folder}")
    (folder / "card.yaml").write_text("labels: {1: RV, 2: MYO, 3: LV}\nlicense: Apache-2.0\n")
    found = named(open_teacher(f"monai:{folder}"), tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(found, np.array([0, 3, 2, 1])[classes])


def test_masks_on_another_grid_are_refused(tmp_path):
    def halve(image: Path, out: Path) -> None:
        nib.save(nib.Nifti1Image(np.zeros((24, 20, 3), np.uint8), np.eye(4)), out)

    scan = Scan(
        pixels=ArrayPixels(np.ones((1, *SHAPE), np.int16)),
        affine=np.eye(4),
        source=Source(path=Path("a.nii")),
    )
    assert next(iter(ByFile(halve)(scan)))[0].shape == (3, 20, 24)
