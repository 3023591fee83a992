"""
Domain adaptation with an estimator
===================================

A classifier has learnt on digits that were scanned one way, and is to read digits that were scanned another way, whose labels
nobody knows. Optimal transport takes the labelled digits to where the others are [1]_; there a classifier learns, and reads the
others.

`otbilevel.compat.sklearn.EntropicTransport` is the map as an estimator of scikit-learn: a step of a pipeline, whose parameters a
grid search can try.

Run it by ``python examples/plot_domain_adaptation.py``. It needs scikit-learn and matplotlib.

.. [1] N. Courty, R. Flamary, D. Tuia, A. Rakotomamonjy, Optimal transport for domain adaptation, IEEE Trans. PAMI 39, 2017.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from otbilevel.compat.sklearn import EntropicTransport

# %%
# Two scanners
# ------------
# The digits of scikit-learn, 8 x 8 pixels from 0 to 16. Half of them stay as they are. The other half goes through a second
# scanner: turned by 20 degrees, on grey paper, and with noise. Their labels serve for the score alone.

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.data))
first, second = order[:900], order[900:]
known, labels = digits.data[first], digits.target[first]
turned = np.array([rotate(image, 20, reshape=False, order=1) for image in digits.images[second]])
unknown = np.clip(4 + 0.7 * turned + rng.normal(size=turned.shape), 0, 16).reshape(len(second), -1)
truth = digits.target[second]

unadapted = KNeighborsClassifier().fit(known, labels).score(unknown, truth)
print(f"digits of the second scanner that are read right without adaptation: {unadapted:.1%}")

# %%
# A pipeline
# ----------
# The estimator is given its targets when it is made, so that the labels pass by it to the classifier. The pipeline learns from
# labelled digits of the first scanner, transported; what has come from the second scanner is there already, so it goes to the
# last step only. A grid search scores labelled digits that were held out, and needs no labels of the second scanner.

pipeline = make_pipeline(EntropicTransport(unknown), KNeighborsClassifier())
regs = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
search = GridSearchCV(pipeline, {"entropictransport__reg": regs}, cv=5).fit(known, labels)
transport, classifier = search.best_estimator_
adapted = classifier.score(unknown, truth)
print(f"with reg = {transport.reg:g}, which the search chose: {adapted:.1%}")
print(transport.result_)

# %%
# What the map does
# -----------------
# Above digits of the first scanner, below where they go: they are turned, and their paper is grey. No digit has been paired with
# another by anyone.

images = transport.transform(known)
chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
fig, axes = plt.subplots(2, 10, figsize=(11, 2.6), layout="constrained")
for row, (name, points) in enumerate({"first scanner": known, "transported": images}.items()):
    for ax, point in zip(axes[row], points[chosen], strict=True):
        ax.imshow(point.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(name)

# %%
# How much to regularise
# ----------------------
# A small regularisation sends each digit to few others and follows the sample; a large one blurs all towards the mean. The
# search sees only the scores of the first scanner.

scores = [
    KNeighborsClassifier().fit(EntropicTransport(unknown, reg=reg).fit_transform(known), labels).score(unknown, truth)
    for reg in regs
]
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
ax.plot(regs, search.cv_results_["mean_test_score"], "o-", color="#0072B2", label="held out, of the first scanner, transported")
ax.plot(regs, scores, "D-", color="#D55E00", label="second scanner")
ax.axhline(unadapted, color="#4D4D4D", ls="--", label="second scanner, without adaptation")
ax.set(xscale="log", xlabel="reg, in units of the mean cost", ylabel="share read right")
ax.legend(frameon=False, fontsize="small")
ax.spines[["top", "right"]].set_visible(False)

plt.show()
