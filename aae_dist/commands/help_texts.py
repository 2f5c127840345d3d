"""What the verbs on trained runs say of themselves in their `--help`."""

ENCODE = """\
Write the latent code (the mean of q(z|x)), the key and the label of every sample of a data set.
Each input shard becomes one output file, which appears whole; the same command, given again,
writes only the missing ones. The bytes depend on the checkpoint and the data alone, not on how
many workers write them. _about.json tells what the folder holds and whether it is complete.
"""
ENCODE_EXAMPLES = """\
examples:
  aae-dist encode runs/quickstart builtin://digits/train --out codes
  aae-dist encode s3://bucket/runs/faces 's3://bucket/faces/*.tar' --out s3://bucket/codes \\
    launch.workers=8 launch.cpus_per_worker=4

With launch.workers=N the shards are spread over N Ray workers, of the cluster of RAY_ADDRESS or
of one that starts on this machine; without it, this process (or torchrun's ranks) does it all.
"""
RECONSTRUCT = """\
Show what a run makes of images: .png has each original above its reconstruction; .npy, .npz and
.safetensors hold the reconstructions, float32 [N, C, H, W] in [0, 1]. Any other --out is a folder:
all samples are written there as WebDataset shards with the keys and labels of the originals.
"""
RECONSTRUCT_EXAMPLES = """\
examples:
  aae-dist reconstruct runs/quickstart --out reconstructions.png
  aae-dist reconstruct runs/quickstart builtin://digits/train --out reconstructed
"""
SAMPLE = """\
Draw from a run's prior and decode the samples. A prior with classes (the modes of a mixture, the
pieces of a swiss roll) can be sampled a class at a time.
"""
SAMPLE_EXAMPLES = """\
examples:
  aae-dist sample runs/quickstart --num 64 --out samples.png
  aae-dist sample runs/quickstart --classes all --num 10 --out classes.png
"""
INTERPOLATE = """\
Decode codes along ways through the latent space:
  pairs     from one code to another, a row each
  plane     a patch between four codes; of a 2-D latent space, the whole range of the prior
  traverse  a row for each dimension, which moves over the prior's range; the others stay
"""
INTERPOLATE_EXAMPLES = """\
examples:
  aae-dist interpolate runs/quickstart --out pairs.png
  aae-dist interpolate runs/quickstart --kind plane --steps 20 --out plane.png
  aae-dist interpolate runs/quickstart --kind traverse --from prior --out traverse.npy
"""
EVALUATE = """\
Measure how well a run reconstructs data, and how well its latent codes match its prior.
"""
EVALUATE_EXAMPLES = """\
examples:
  aae-dist evaluate runs/quickstart
  aae-dist evaluate runs/quickstart --data builtin://digits/train --json
"""
IMAGE_FILE = (
    ".png (one grid), or .npy, .npz or .safetensors with `images`, float32 [N, C, H, W], "
    "pixels in [0, 1]"
)
EXPORT = """\
Write a run's encoder (pixels in [0, 1] to codes, the means of q(z|x)) and its decoder (codes to
pixels) as programs that run without aae_dist, for batches of any size, in float32. Each is loaded
again and compared with the run; export.json says what they take and give.
"""
EXPORT_EXAMPLES = """\
examples:
  aae-dist export runs/quickstart --out exported
  aae-dist export runs/quickstart --format onnx --out exported

A .pt2 file holds weights and a program: load only those whose origin you trust. --format onnx
needs pip install onnx onnxscript onnxruntime.
"""
RUNS = """\
List the runs in a folder or bucket: state (finished, running, interrupted, diverged, stopped: its
process died, new: nothing saved yet), step, prior, latent size z, squared error per pixel, scores
of the match with the prior, and how long ago it last wrote. Of a sweep, its number of trials.
"""
RUNS_EXAMPLES = """\
examples:
  aae-dist runs runs
  aae-dist runs s3://bucket/runs/my-sweep/trials
  aae-dist runs --json | jq '.[] | select(.state == "running") | .name'
"""
