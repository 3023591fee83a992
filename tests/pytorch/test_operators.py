"""Operators of models against dense matrices by nested derivatives; what they leave alone, and what they refuse."""

import array_api_strict
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch.func import functional_call, hessian, jacrev

from otbilevel import ConvergenceWarning
from otbilevel.curvature import MFAC, eigsh, ihvp
from otbilevel.pytorch import from_torch, gradients

COUNT = 11


class Attention(nn.Module):
    """One head, and a linear layer on the mean."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        scores = torch.softmax(self.query(x) @ self.key(x).transpose(-1, -2), -1)
        return self.out((scores @ x).mean(1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "cnn": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4)),
    "attention": (Attention, (3, 4)),
}
LOSSES = {"ce": nn.CrossEntropyLoss, "mse": nn.MSELoss, "bce": nn.BCEWithLogitsLoss}


def problem(name, loss, reduction):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().double(), torch.randn(COUNT, *shape, dtype=torch.float64)
    y = {"ce": torch.randint(0, 3, (COUNT,)), "mse": torch.randn(COUNT, 3).double(), "bce": torch.rand(COUNT, 3).double()}[loss]
    return model, LOSSES[loss](reduction=reduction), [(x[:4], y[:4]), (x[4:], y[4:])]


def flat(model):
    """Present parameters as a vector, and the way back."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def unflatten(w):
        parts = torch.split(w, [p.numel() for p in params.values()])
        return {name: part.reshape(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}

    return torch.cat([p.reshape(-1) for p in params.values()]), unflatten


def shares(data, reduction):
    return [len(x) / COUNT if reduction == "mean" else 1.0 for x, _ in data]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_equals_its_dense_matrix(name, loss, reduction):
    model, criterion, data = problem(name, loss, reduction)
    w, unflatten = flat(model)

    def outputs(v, x):
        return functional_call(model, unflatten(v), (x,))

    H = G = E = 0.0
    for share, (x, y) in zip(shares(data, reduction), data, strict=True):
        H = H + share * hessian(lambda v, x=x, y=y: criterion(outputs(v, x), y))(w)
        f = outputs(w, x)
        J = jacrev(lambda v, x=x: outputs(v, x).reshape(-1))(w)
        of_outputs = hessian(lambda u, y=y, f=f: criterion(u.reshape(f.shape), y))(f.reshape(-1))
        G = G + share * J.T @ of_outputs @ J
        for k in range(len(x)):
            g = jacrev(lambda v, x=x, y=y, k=k: criterion(outputs(v, x[k : k + 1]), y[k : k + 1]))(w)
            E = E + (1 / COUNT if reduction == "mean" else 1.0) * torch.outer(g, g)
    for settings, kept in (({}, 1.0), ({"memory": 0, "hvp": "reverse"}, 0.0), ({"memory": 0}, 0.0), ({"microbatch": 3}, 1.0)):
        op = from_torch(model, criterion, data=data, **settings)
        assert op.kept == kept
        np.testing.assert_allclose(op.to_dense(), H.numpy(), atol=1e-10)
        assert not op.psd
    np.testing.assert_allclose(sum(part.to_dense() for part in op.parts) / 2, H.numpy(), atol=1e-10)
    np.testing.assert_allclose(from_torch(model, criterion, data=data, hvp="differences").to_dense(), H.numpy(), atol=1e-6)
    for settings in ({}, {"memory": 0, "hvp": "forward"}):
        for kind, dense in (("ggn", G), ("empirical_fisher", E)):
            op = from_torch(model, criterion, data=data, kind=kind, **settings)
            np.testing.assert_allclose(op.to_dense(), dense.numpy(), atol=1e-10)
            assert op.psd
    drawn = from_torch(model, criterion, data=data, kind="fisher_mc", samples=4000)
    assert np.linalg.norm(drawn.to_dense() - G.numpy()) < 0.05 * np.linalg.norm(G.numpy())
    v = np.ones(len(w))
    np.testing.assert_array_equal(drawn @ v, drawn @ v)
    np.testing.assert_allclose(sum(part @ v for part in drawn.parts) / 2, drawn @ v, atol=1e-10)


def test_vectors_come_back_as_they_went_in():
    op = from_torch(*problem("mlp", "ce", "mean")[:2], data=problem("mlp", "ce", "mean")[2])
    v = np.random.default_rng(0).standard_normal(op.shape[0])
    product = op @ v
    assert isinstance(product, np.ndarray) and product.dtype == np.float64
    assert (op @ v.astype(np.float32)).dtype == np.float32
    tensor = op @ torch.from_numpy(v)
    assert isinstance(tensor, torch.Tensor) and not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), product)
    v.flags.writeable = False
    np.testing.assert_array_equal(op @ v, product)
    shared = op @ array_api_strict.asarray(np.array(v))  # any library, by DLPack
    assert type(shared) is type(array_api_strict.asarray(0.0))
    np.testing.assert_array_equal(np.asarray(shared), product)


def test_tied_frozen_and_unused_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.second.bias.requires_grad_(False)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    torch.manual_seed(0)
    model, x, y = Tied().double(), torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    op = from_torch(model, nn.CrossEntropyLoss(), data=[(x, y)])
    assert op.names == ["first.weight", "first.bias", "unused.weight", "unused.bias"] and op.shape == (18, 18)
    rest = model.second.bias.detach()

    def value(w):
        W, b = w[:9].reshape(3, 3), w[9:12]
        return nn.functional.cross_entropy(torch.tanh(x @ W.T + b) @ W.T + rest, y)

    w = torch.cat([model.first.weight.detach().reshape(-1), model.first.bias.detach()])
    dense = op.to_dense()
    np.testing.assert_allclose(dense[:12, :12], hessian(value)(w).numpy(), atol=1e-12)
    assert not dense[12:].any() and not dense[:, 12:].any()
    part = from_torch(model, nn.CrossEntropyLoss(), [model.first.bias], [(x, y)])
    np.testing.assert_allclose(part.to_dense(), dense[9:12, 9:12], atol=1e-12)


def test_the_model_is_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    op = from_torch(model, nn.CrossEntropyLoss(), data=[(torch.randn(8, 4), torch.randint(0, 2, (8,)))])
    op @ np.ones(op.shape[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_what_stands_on_it():
    model, criterion, data = problem("mlp", "ce", "mean")
    op = from_torch(model, criterion, data=data, kind="ggn")
    dense = op.to_dense()
    np.testing.assert_allclose(eigsh(op, 2).values, np.linalg.eigvalsh(dense)[::-1][:2], rtol=1e-8)
    b = np.random.default_rng(0).standard_normal(op.shape[0])
    parts = op.parts
    before = op.nmatvec
    with pytest.warns(ConvergenceWarning):
        loose = ihvp(op, b, "lissa", damping=0.1, max_iter=20, tol=1e-12)
    assert op.nmatvec - before < 5 and len(op.parts) == len(parts)  # it draws from the batches, and leaves the operator as it is
    assert loose.residual < 1.0
    result = ihvp(op, b, damping=0.1, tol=1e-10)
    np.testing.assert_allclose(result.x, np.linalg.solve(dense + 0.1 * np.eye(len(b)), b), atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_samples_and_of_batches(name):
    model, criterion, data = problem(name, "ce", "mean")
    G = gradients(model, criterion, data=data)
    E = from_torch(model, criterion, data=data, kind="empirical_fisher").to_dense()
    np.testing.assert_allclose((G.T @ G / COUNT).numpy(), E, atol=1e-12)
    of_batches = gradients(model, criterion, data=data, per="batch")
    for k, (x, y) in enumerate(data):
        whole = torch.autograd.grad(criterion(model(x), y), list(model.parameters()))
        np.testing.assert_allclose(of_batches[k].numpy(), torch.cat([g.reshape(-1) for g in whole]).numpy(), atol=1e-12)
    b = np.ones(len(E))
    expected = np.linalg.solve(E + 1e-2 * np.eye(len(E)), b)
    np.testing.assert_allclose(MFAC.from_gradients(G.numpy(), 1e-2).solve(b), expected, rtol=1e-8, atol=1e-8)


def test_gradients_of_a_model_that_cannot_be_vectorised():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() > 0 else -super().forward(x)

    model, x, y = Branching(2, 1).double(), torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double(), torch.zeros(2, 1).double()
    found = gradients(model, nn.MSELoss(), data=[(x, y)])
    for k in range(2):
        of_one = torch.autograd.grad(nn.MSELoss()(model(x[k : k + 1]), y[k : k + 1]), list(model.parameters()))
        np.testing.assert_allclose(found[k].numpy(), torch.cat([g.reshape(-1) for g in of_one]).numpy(), atol=1e-14)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher_mc", "empirical_fisher"])
@pytest.mark.parametrize("settings", [{}, {"memory": 0, "hvp": "forward"}, {"memory": 0, "hvp": "reverse"}])
def test_products_do_not_grow_memory(kind, settings):
    model = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 10))
    data = [(torch.randn(32, 500), torch.randint(0, 10, (32,)))]
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    op = from_torch(model, nn.CrossEntropyLoss(), data=data, kind=kind, **settings)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(20):
        op @ v
    before = resident()
    for _ in range(200):
        op @ v
    assert resident() - before < 4 * v.nbytes  # a leak of one vector a product would be 200
    for _ in range(5):
        from_torch(model, nn.CrossEntropyLoss(), data=data, kind=kind, **settings) @ v
    before = resident()
    for _ in range(50):
        from_torch(model, nn.CrossEntropyLoss(), data=data, kind=kind, **settings) @ v
    assert resident() - before < 10 * v.nbytes


def test_the_operator_keeps_the_parameters_that_it_was_made_with():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.randint(0, 2, (8,))
    for settings in ({}, {"memory": 0}):
        op = from_torch(model, nn.CrossEntropyLoss(), data=[(x, y)], **settings)
        before = op.to_dense()
        with torch.no_grad():
            model.weight.mul_(2.0)
        np.testing.assert_array_equal(op.to_dense(), before)
        assert np.abs(from_torch(model, nn.CrossEntropyLoss(), data=[(x, y)], **settings).to_dense() - before).max() > 1e-3


def test_the_memory_for_graphs_is_a_limit():
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2))
    data = [(torch.randn(40, 20), torch.randint(0, 2, (40,))) for _ in range(4)]
    v = np.ones(sum(p.numel() for p in model.parameters()))
    expected = from_torch(model, nn.CrossEntropyLoss(), data=data, memory=0) @ v
    kept = []
    for memory in (10**3, 20_000, 50_000, 10**9):
        op = from_torch(model, nn.CrossEntropyLoss(), data=data, memory=memory)
        kept.append(op.kept)
        np.testing.assert_allclose(op @ v, expected, rtol=1e-4, atol=1e-6)
    assert kept[0] == 0.0 and 0 < kept[2] < 1 and kept[3] == 1.0 and op.way == "reverse"


def test_an_operation_that_is_differentiated_only_once():
    """PyTorch takes its derivative for a constant, silently: differences of gradients do not."""

    class Cubed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * g

    class Model(nn.Linear):
        def forward(self, x):
            return Cubed.apply(super().forward(x))

    class Same(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 3

    torch.manual_seed(0)
    model, same, x, y = Model(3, 2).double(), Same(3, 2).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    same.load_state_dict(model.state_dict())
    op, exact = (from_torch(m, nn.MSELoss(), data=[(x, y)]) for m in (model, same))
    assert op.way == "differences" and exact.way == "reverse"
    np.testing.assert_allclose(op.to_dense(), exact.to_dense(), atol=1e-7)
    with pytest.raises(ValueError, match=r"no way to these products works.*once_differentiable"):
        from_torch(model, nn.MSELoss(), data=[(x, y)], kind="ggn")


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_outputs_without_a_class_axis(loss):
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double(), torch.randn(12, 4).double(), torch.rand(12).double()
    G = gradients(model, loss, data=[(x, y)])
    op = from_torch(model, loss, data=[(x, y)], kind="empirical_fisher")
    np.testing.assert_allclose(op.to_dense(), (G.T @ G / 12).numpy(), atol=1e-12)
    ggn = from_torch(model, loss, data=[(x, y)], kind="ggn").to_dense()
    drawn = from_torch(model, loss, data=[(x, y)], kind="fisher_mc", samples=20_000).to_dense()
    assert np.linalg.norm(drawn - ggn) < 0.03 * np.linalg.norm(ggn)


def test_ignored_targets_and_class_weights():
    model, criterion, data = problem("mlp", "ce", "mean")
    x, y = data[0][0], data[0][1].clone()
    y[:2] = -100
    settings = {"data": [(x, y)]}
    valid = y != -100
    G = gradients(model, criterion, data=[(x[valid], y[valid])])
    op = from_torch(model, criterion, kind="empirical_fisher", **settings)
    np.testing.assert_allclose(op.to_dense(), (G.T @ G / int(valid.sum())).numpy(), atol=1e-12)
    ggn = from_torch(model, criterion, kind="ggn", **settings).to_dense()
    drawn = from_torch(model, criterion, kind="fisher_mc", samples=20_000, **settings).to_dense()
    assert np.linalg.norm(drawn - ggn) < 0.03 * np.linalg.norm(ggn)
    weighted = nn.CrossEntropyLoss(weight=torch.arange(1.0, 1.0 + model(x).shape[1]).double())
    for loss, targets in ((criterion, y), (weighted, torch.tensor([0, 1, 2, 2]))):
        with pytest.raises(ValueError, match="the loss is no mean over samples"):
            from_torch(model, loss, data=[(x, targets)], microbatch=3)
    for kind in ("fisher_mc", "empirical_fisher"):
        with pytest.raises(ValueError, match="a weighted mean of cross-entropies"):
            from_torch(model, weighted, data=data, kind=kind)
    flat = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0, 1)).double()
    tokens = torch.randn(5, 6, 4).double(), torch.randint(0, 3, (30,))
    assert from_torch(flat, criterion, data=[tokens], kind="ggn").psd
    with pytest.raises(ValueError, match="outputs of 5 samples have shape"):
        from_torch(flat, criterion, data=[tokens], kind="empirical_fisher")
    with pytest.raises(ValueError, match="cannot be cut"):
        from_torch(flat, criterion, data=[tokens], microbatch=2)


@pytest.mark.parametrize("settings", [{}, {"memory": 0}, {"memory": 0, "hvp": "reverse"}])
def test_the_operator_keeps_the_mode_of_the_model(settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double().eval()
    data = [(torch.randn(12, 4).double(), torch.randint(0, 3, (12,)))]
    v = np.ones(sum(p.numel() for p in model.parameters()))
    expected = from_torch(model, nn.CrossEntropyLoss(), data=data, **settings) @ v
    op = from_torch(model, nn.CrossEntropyLoss(), data=data, **settings)
    model.train()
    np.testing.assert_allclose(op @ v, expected, atol=1e-12)
    assert model.training and all(module.training for module in model.modules())


def test_parameters_that_were_not_chosen_are_watched():
    model, criterion, data = problem("mlp", "ce", "mean")
    first = next(iter(model.parameters()))
    for settings in ({}, {"memory": 0}):
        op = from_torch(model, criterion, [first], data, **settings)
        op @ np.ones(op.shape[0])
        with torch.no_grad():
            first.mul_(1.1)  # chosen: the operator has a copy
        op @ np.ones(op.shape[0])
        with torch.no_grad():
            list(model.parameters())[-1].add_(1.0)
        with pytest.raises(RuntimeError, match="was changed since the operator was made"):
            op @ np.ones(op.shape[0])


@pytest.mark.parametrize("settings", [{}, {"memory": 0, "hvp": "reverse"}, {"hvp": "differences"}])
def test_checkpoints_see_the_parameters_of_the_operator(settings):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False))

    torch.manual_seed(0)
    model, x, y = Checkpointed().double(), torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    plain = nn.Sequential(*model.inner, model.outer)
    exact = from_torch(plain, nn.CrossEntropyLoss(), data=[(x, y)]).to_dense()
    op = from_torch(model, nn.CrossEntropyLoss(), data=[(x, y)], **settings)
    np.testing.assert_allclose(op.to_dense(), exact, atol=1e-7)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    np.testing.assert_allclose(op.to_dense(), exact, atol=1e-7)


def test_inference_mode():
    model, criterion, data = problem("mlp", "ce", "mean")
    for kind in ("hessian", "ggn", "fisher_mc", "empirical_fisher"):
        expected = from_torch(model, criterion, data=data, kind=kind).to_dense()
        with torch.inference_mode():
            op = from_torch(model, criterion, data=[(x * 1.0, y) for x, y in data], kind=kind)
            np.testing.assert_allclose(op.to_dense(), expected, atol=1e-14)
            assert (op @ torch.ones(op.shape[0])).isfinite().all()
        np.testing.assert_allclose(op.to_dense(), expected, atol=1e-14)
    with torch.inference_mode():
        assert gradients(model, criterion, data=data, per="batch").abs().max() > 0


def test_products_that_are_not_symmetric_are_refused():
    """The gradient of an embedding leaves its padding out: forward mode then has rows without columns."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 3)
            nn.init.normal_(self.embedding.weight)

        def forward(self, x):
            return self.head(torch.tanh(self.embedding(x).mean(1)))

    torch.manual_seed(0)
    model, x, y = Bag().double(), torch.randint(0, 6, (12, 5)), torch.randint(0, 3, (12,))
    for settings in ({}, {"memory": 0}):
        op = from_torch(model, nn.CrossEntropyLoss(), data=[(x, y)], **settings)
        assert op.way == "reverse"
        np.testing.assert_allclose(op.to_dense(), op.to_dense().T, atol=1e-12)
    for way in ("forward", "differences"):
        with pytest.raises(ValueError, match="not those of a symmetric matrix"):
            from_torch(model, nn.CrossEntropyLoss(), data=[(x, y)], hvp=way)


@pytest.mark.parametrize("training", [False, True])
def test_attention_of_pytorch(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)).double().train(training)
    data = [(torch.randn(6, 3, 8).double(), torch.randint(0, 3, (6,)))]
    hessian, ggn = (from_torch(model, nn.CrossEntropyLoss(), data=data, kind=kind) for kind in ("hessian", "ggn"))
    assert hessian.way == ggn.way == "reverse"
    v = np.random.default_rng(0).standard_normal(hessian.shape[0])
    differences = from_torch(model, nn.CrossEntropyLoss(), data=data, hvp="differences") @ v
    np.testing.assert_allclose(hessian @ v, differences, rtol=1e-5, atol=1e-7)
    assert v @ (ggn @ v) >= 0


def test_which_matrices_are_known_to_be_semi_definite():
    model, x, y = nn.Linear(3, 1).double(), torch.randn(5, 3).double(), torch.randn(5, 1).double()
    assert from_torch(model, nn.MSELoss(), data=[(x, y)], kind="ggn").psd
    assert from_torch(model, nn.functional.mse_loss, data=[(x, y)], kind="ggn").psd
    assert not from_torch(model, lambda f, y: torch.cos(f).mean(), data=[(x, y)], kind="ggn").psd


def test_graphs_that_are_kept_take_no_more_than_their_memory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 10))
    data = [(torch.randn(8, 500), torch.randint(0, 10, (8,))) for _ in range(40)]
    op = from_torch(model, nn.CrossEntropyLoss(), data=data, memory=2**25)
    v = torch.randn(op.shape[0])

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    from_torch(model, nn.CrossEntropyLoss(), data=data[:1], memory=0) @ v
    before = resident()
    op @ v
    grown = resident() - before
    sum(part @ v for part in op.parts)
    assert resident() - before < 2 * 2**25 and grown < 2 * 2**25  # the gradients of 40 graphs would take 40 MB more
    assert op.kept > 0


def test_solvers_with_tensors_in_single_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    data = [(torch.randn(40, 6), torch.randint(0, 3, (40,)))]
    op = from_torch(model, nn.CrossEntropyLoss(), data=data, kind="ggn")
    b = torch.randn(op.shape[0])
    exact = torch.linalg.solve(torch.from_numpy(op.to_dense()) + 0.1 * torch.eye(len(b)), b.double())
    for method in ("cg", "minres", "neumann", "nystrom", "lissa", "dense"):
        options = {"lissa": {"repeats": 1}, "nystrom": {"rank": 30}}.get(method)
        found = ihvp(op, b, method, damping=0.1, tol=1e-4, max_iter=3000, options=options)
        assert found.success and type(found.x) is type(b) and found.x.dtype == b.dtype
        assert torch.linalg.vector_norm(found.x - exact) < 1e-3 * torch.linalg.vector_norm(exact)
    direct = ihvp(op, b, "nystrom", damping=0.1, tol=1e-3, options={"rank": 53, "direct": True})
    assert direct.success  # noise in products is not taken for eigenvalues
    G = gradients(model, nn.CrossEntropyLoss(), data=data)
    fisher = from_torch(model, nn.CrossEntropyLoss(), data=data, kind="empirical_fisher")
    for given in (G, G.numpy()):
        for right in (b, b.numpy()):
            found = ihvp(fisher, right, "mfac", damping=0.1, tol=1e-4, options={"gradients": given})
            assert found.success and type(found.x) is type(right)


def test_inputs_of_other_forms():
    from collections import namedtuple

    Pair = namedtuple("Pair", ["left", "right"])

    class Sum(nn.Linear):
        def forward(self, left, right):
            return super().forward(left + right)

    torch.manual_seed(0)
    model, x = Sum(3, 2).double(), torch.randn(6, 3).double()
    loss = lambda f, y: torch.mean(f**4)  # noqa: E731
    exact = from_torch(nn.Linear(3, 2), loss, data=[(x.float(), None)])
    assert exact.shape == (8, 8)
    whole, cut = (from_torch(model, loss, data=[(Pair(x, x), None)], microbatch=width) for width in (None, 4))
    np.testing.assert_allclose(cut.to_dense(), whole.to_dense(), atol=1e-12)
    assert gradients(model, loss, data=[(Pair(x, x), None)]).shape == (6, 8)


LINEAR = nn.Linear(2, 1)
DATA = [(torch.randn(64, 2), torch.ones(64, 1))]


class Root(nn.Module):
    def forward(self, x):
        return torch.sqrt(torch.abs(0.0 * x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: from_torch(lambda x: x, nn.MSELoss(), data=DATA), TypeError, "model must be a torch.nn.Module"),
        (lambda: from_torch(LINEAR, nn.MSELoss()), ValueError, "data is empty"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), data=[torch.ones(3, 2)]), TypeError, r"pairs \(inputs, targets\), but item 0"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), [torch.ones(2)], DATA), ValueError, r"params\[0\] is no parameter"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), [LINEAR.bias, LINEAR.bias], DATA), ValueError, "there twice"),
        (lambda: from_torch(nn.Flatten(), nn.MSELoss(), data=DATA), ValueError, "no trainable parameter"),
        (lambda: from_torch(LINEAR, nn.MSELoss(reduction="none"), data=DATA), ValueError, "loss.reduction must be"),
        (lambda: from_torch(LINEAR, lambda f, y: f - y, data=DATA), ValueError, r"scalar tensor, got shape \(64, 1\)"),
        (lambda: from_torch(LINEAR, lambda f, y: 1.0, data=DATA), ValueError, "scalar tensor, got float"),
        (
            lambda: from_torch(LINEAR, nn.MSELoss(), data=[(np.nan * DATA[0][0], DATA[0][1])]),
            ValueError,
            "batch 0 of data is nan",
        ),
        (lambda: from_torch(nn.Sequential(LINEAR, nn.Dropout()), nn.MSELoss(), data=DATA), ValueError, r"call model.eval\(\)"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), data=DATA, kind="kfac"), ValueError, "kind must be one of"),
        (
            lambda: from_torch(LINEAR, nn.MSELoss(), data=[*DATA, (DATA[0][0], np.inf * DATA[0][1])]),
            ValueError,
            "batch 1 of data is inf",
        ),
        (
            lambda: from_torch(LINEAR, nn.MSELoss(), data=[(torch.ones(3, 2), torch.ones(4, 1))]),
            ValueError,
            "3 inputs and 4 targets",
        ),
        (lambda: from_torch(LINEAR, nn.MSELoss(), data=[(torch.ones(0, 2), torch.ones(0, 1))]), ValueError, "holds no samples"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), data=DATA, kind="ggn", hvp="differences"), ValueError, 'is for kind="hessian"'),
        (
            lambda: from_torch(nn.Sequential(LINEAR, Root()), nn.MSELoss(), data=DATA),
            ValueError,
            "gradient of the loss is not finite",
        ),
        (lambda: from_torch(nn.LSTM(2, 3), lambda f, y: f[0].mean(), data=DATA, kind="ggn"), TypeError, "must return one tensor"),
        (
            lambda: from_torch(LINEAR, lambda f, y: torch.sum((f - y) ** 2), data=DATA),
            ValueError,
            'is a sum over samples: say so, by reduction="sum"',
        ),
        (lambda: from_torch(LINEAR, nn.MSELoss(), DATA), ValueError, "did you mean data="),
        (
            lambda: gradients(LINEAR, nn.CrossEntropyLoss(weight=torch.ones(1)), data=[(DATA[0][0], torch.zeros(64).long())]),
            ValueError,
            "the weight of a class cancels",
        ),
        (lambda: gradients(lambda x: x, nn.MSELoss(), data=DATA), TypeError, "model must be a torch.nn.Module"),
        (lambda: gradients(LINEAR, nn.MSELoss(), data=DATA, per="layer"), ValueError, "per must be one of"),
        (lambda: gradients(LINEAR, nn.MSELoss()), ValueError, "data is empty"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), data=DATA, hvp="fast"), ValueError, "hvp must be one of"),
        (lambda: from_torch(LINEAR, nn.L1Loss(), data=DATA, kind="fisher_mc") @ np.ones(3), TypeError, "likelihood of"),
        (lambda: from_torch(LINEAR, nn.MSELoss(), data=DATA) @ np.ones(4), ValueError, r"shape \(3,\), got \(4,\)"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
