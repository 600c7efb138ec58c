"""Slow float64 oracles: scalar loops written from the papers' formulas, sharing no code with the package.

They use torch scalars, so that autograd provides the oracle of the gradient too.
"""

import itertools
import math

import torch


def as_float64(x):
    """A float64 leaf with the values of `x`; the conversion is exact."""
    return x.detach().double().clone().requires_grad_()


def each(function, *tensors):
    """Apply `function` to corresponding scalars of tensors of the same shape."""
    flat = zip(*(t.reshape(-1).unbind() for t in tensors), strict=True)
    return torch.stack([function(*scalars) for scalars in flat]).reshape(tensors[0].shape)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a.unbind(), b.unbind(), strict=True))
    norms = [sum(x * x for x in row.unbind()).sqrt() for row in (a, b)]
    return dot / (norms[0] * norms[1])


def nt_xent(v, v_prime, temperature):
    """SimCLR (arXiv 2002.05709), equation 1: one loss for each of the 2N views. v: (N, D)."""
    n = v.shape[0]
    views = [*v.unbind(), *v_prime.unbind()]
    losses = []
    for i in range(2 * n):
        positive = i + n if i < n else i - n
        total = sum((cosine(views[i], views[k]) / temperature).exp() for k in range(2 * n) if k != i)  # 1[k != i]
        losses.append(-((cosine(views[i], views[positive]) / temperature).exp() / total).log())
    return torch.stack(losses)


def nt_xent_by_rows(v, v_prime, temperature):
    """`nt_xent` with a loop over views only, for large batches."""
    n = v.shape[0]
    views = torch.cat((v, v_prime))
    views = views / (views * views).sum(dim=1, keepdim=True).sqrt()
    losses = []
    for i, view in enumerate(views):
        logits = views @ view / temperature
        others = torch.cat((logits[:i], logits[i + 1 :]))  # 1[k != i]
        losses.append(others.logsumexp(0) - logits[(i + n) % (2 * n)])
    return torch.stack(losses)


def one_tower(queries, keys, negatives, temperature):
    """MoCo (arXiv 1911.05722), equation 1: one loss for each query, with all keys and negatives in the denominator."""
    losses = []
    for q, own in zip(queries.unbind(), keys.unbind(), strict=True):
        total = sum((cosine(q, k) / temperature).exp() for k in (*keys.unbind(), *negatives))
        losses.append(-((cosine(q, own) / temperature).exp() / total).log())
    return torch.stack(losses)


def supcon(rows, labels, temperature):
    """Khosla et al. (arXiv 2004.11362), equation 2: one loss for each row, 0 without positives."""
    views, losses = rows.unbind(), []
    for i, v in enumerate(views):
        logits = {k: cosine(v, w) / temperature for k, w in enumerate(views) if k != i}
        total = sum((s.exp() for s in logits.values()), torch.zeros((), dtype=rows.dtype))
        terms = [(s.exp() / total).log() for k, s in logits.items() if labels[k] == labels[i]]
        losses.append(-sum(terms) / len(terms) if terms else 0 * v.sum() * temperature)
    return torch.stack(losses)


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def relaxed_bernoulli_sample(logits, temperature, noise):
    """Maddison et al. (arXiv 1611.00712): a logistic variable at the logit, through a sharpened sigmoid."""
    return each(lambda a, e: sigmoid((a + e) / temperature), logits, noise)


def gaussian_sample(mean, log_std, noise):
    return each(lambda m, s, e: m + s.exp() * e, mean, log_std.expand_as(mean), noise)


def bernoulli_entropy(logits):
    """-p log p - (1 - p) log(1 - p); accurate for moderate logits only."""

    def entropy(logit):
        p, q = sigmoid(logit), sigmoid(-logit)
        return -p * p.log() - q * q.log()

    return each(entropy, logits)


def bernoulli_kl(logits):
    """p log(p / 0.5) + (1 - p) log((1 - p) / 0.5); accurate for moderate logits only."""

    def divergence(logit):
        p, q = sigmoid(logit), sigmoid(-logit)
        return p * (p / 0.5).log() + q * (q / 0.5).log()

    return each(divergence, logits)


def bernoulli_log_prob(logits, bits):
    return each(lambda a, b: sigmoid(a).log() if b == 1 else sigmoid(-a).log(), logits, bits)


def relaxed_bernoulli_log_prob(logits, temperature, z):
    """arXiv 1611.00712, equation 24: the density of a Binary Concrete variable with alpha = exp(logit)."""

    def log_density(logit, x):
        alpha = logit.exp()
        numerator = temperature * alpha * x ** (-temperature - 1) * (1 - x) ** (-temperature - 1)
        return (numerator / (alpha * x**-temperature + (1 - x) ** -temperature) ** 2).log()

    return each(log_density, logits, z)


def gaussian_kl(mean, log_std):
    """Kingma and Welling (arXiv 1312.6114), appendix B: -(1 + log s^2 - m^2 - s^2) / 2."""

    def divergence(m, s):
        variance = (2 * s).exp()
        return -0.5 * (1 + variance.log() - m * m - variance)

    return each(divergence, mean, log_std.expand_as(mean))


def gaussian_entropy(mean, log_std):
    return each(lambda _, s: 0.5 * (2 * math.pi * math.e * (2 * s).exp()).log(), mean, log_std.expand_as(mean))


def gaussian_log_prob(mean, log_std, z):
    def log_density(m, s, x):
        variance = (2 * s).exp()
        return -((x - m) ** 2) / (2 * variance) - 0.5 * (2 * math.pi * variance).log()

    return each(log_density, mean, log_std.expand_as(mean), z)


def hamming(a, b):
    """Differing bits of two rows of bytes, counted in binary notation."""
    return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True))


def kolmogorov_smirnov(sample, cdf):
    """Largest distance between the empirical distribution of a sample and `cdf`."""
    x = sample.double().sort().values
    n, f = x.numel(), cdf(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max((f - steps[:-1]).max().item(), (steps[1:] - f).max().item())


def kolmogorov_smirnov_limit(n, alpha=1e-6):
    """Distance that a correct sample of size n exceeds with probability at most alpha (Massart's inequality)."""
    return math.sqrt(math.log(2 / alpha) / (2 * n))


def retrieval_over_orders(distances, relevant, r, k):
    """Average precision at r, precision and recall at k: means over all orders with ascending distance."""
    scores = []
    for order in itertools.permutations(range(len(distances))):
        if all(distances[a] <= distances[b] for a, b in itertools.pairwise(order)):
            hits = [relevant[i] for i in order]
            precisions = [sum(hits[:rank]) / rank for rank in range(1, min(r, len(hits)) + 1) if hits[rank - 1]]
            first = sum(hits[:k])
            scores.append((sum(precisions) / max(len(precisions), 1), first / k, first / max(sum(hits), 1)))
    return [sum(column) / len(scores) for column in zip(*scores, strict=True)]


# ---- random tensors ----------------------------------------------------------------------------------------


def normal(*shape, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def views(*shape, dtype=torch.float64, seed=0):
    """Two views, as leaves that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return tuple(view.clone().requires_grad_() for view in x)


def leaves(*tensors):
    """Copies that require a gradient."""
    return [t.detach().clone().requires_grad_() for t in tensors]
