"""A folder of images: look at it, let `init` write the settings, train, read the results.

`init` looks at the folder, finds images without a label, and writes settings with comments. The
picture has the recall of each class after FixMatch and after SelMix. So few steps change little.
"""

import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_digits

from ssl_selmix.cli import main

STEPS = int(os.environ.get("STEPS", 300))

# A folder as you may have one: few images of some classes, and many without a label.
digits = load_digits()
left = {k: [30, 24, 18, 14, 11, 9, 7, 6, 5, 5][k] for k in range(10)}
for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    if i < 600:
        place = f"photos/test/{label}"
    elif left[label]:
        place, left[label] = f"photos/train/{label}", left[label] - 1
    else:
        place = "photos/unlabeled"
    Path(place).mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255 / 16).astype("uint8")).save(f"{place}/{i}.png")

main(["data", "image_folder", "data.root=photos", "--html", "photos.html"])
assert main(["init", "--images", "photos", "--goal", "worst", "--time", "try", "--yes"]) == 0
shorter = [f"fixmatch.steps={STEPS}", f"selmix.steps={-(-STEPS // 4)}", "fixmatch.batch=32"]
assert main(["train", "--config", "selmix.yaml", "--out", "run", *shorter]) == 0

results = json.loads(Path("run/results.json").read_text())
names = results["class_names"]
figure, axis = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
for stage, style in zip(results["stages"], ("o--", "s-"), strict=True):
    recalls = [100 * r for r in stage["test"]["per_class_recall"]]
    print(f"{stage['algorithm']}: worst class {min(recalls):.1f} %")
    axis.plot(names, recalls, style, color="k", label=stage["algorithm"])
axis.lines[0].set_markerfacecolor("w")
axis.set(xlabel="class, the rarest on the right", ylabel="recall, percent", ylim=(0, 103))
axis.legend()
figure.savefig("own_folder.png", dpi=110)
