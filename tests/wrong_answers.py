"""Wrong answers to the assignments: by question, changes of the right answer, and what the feedback must say of each.

A line is the right answer's text, what is written in its place, and pieces of the feedback.
"""

HAAR = "Q * np.sign(np.diag(R))"
ROTATED = "return rotated, Q[:-1].transpose(0, 2, 1) @ Q[1:]"
IDENTITIES = "np.stack([np.eye(len(q)) for q in Q[1:]])"
USED = "return 2 * used"
COSINES = "np.linalg.svd(P.T @ R, compute_uv=False)"
LOW_RANK = "U[:, :r] * np.sqrt(deficits[:r])"
SOLVED = "np.linalg.inv(C_KK + ridge * np.eye(k)) @ C_KM @ W[gone]"

WRONG = {
    "a1.center": [("np.eye(D) - np.ones", "np.ones", "M:", "the mean in place of every number")],
    "a1.fuse_reader": [
        ("alpha[:, None] * W", "alpha * W", "line", "alpha * W", "ValueError"),
        ("alpha[:, None] * W", "W.copy()", "W:", "alpha is not in it"),
        ("beta @ W", "beta @ fused", "b:", "beta went through the scaled W"),
        ("fused = alpha[:, None] * W", "fused = W\n    W *= alpha[:, None]", "W: the function changes its argument"),
    ],
    "a1.fuse_writer": [
        ("W.mean(axis=1, keepdims=True)", "W.mean(axis=0)", "W:", "the wrong axis", "b ok"),
    ],
    "a1.fuse": [
        ('centred(net["W_pos"])', 'net["W_pos"]', "W_pos:", "LayerNorms would subtract its mean", "W_embd ok"),
        (
            '"W_embd": centred(net["W_embd"])',
            '"W_embd": W_head.T if net["W_head"] is None else centred(net["W_embd"])',
            *("W_embd:", "scaled with the tied head"),
        ),
        ("if layernorm and x is", "if x is", "W_embd:", "an RMSNorm subtracts no mean"),
        ("W_head, b_head = fuse_reader(W_head", "_, b_head = fuse_reader(W_head", "W_head:", "alpha is not in it"),
        ('centred(net["b_out"])', 'net["b_out"]', "b_out[0]:", "written to the signal too", "W_out ok"),
        ('"b_head": b_head', '"b_head": b_head + 1.0', "b_head:"),
        ("return {", "return net | {", "alpha: expected None, got float64 [3, 3]"),
    ],
    "a2.rms": [
        ("np.mean(x**2", "np.var(x", "rms(x):", "standard deviation"),
        ("return x", "x = x - x.mean(1, keepdims=True)\n    return x", "rms(x):", "This is LayerNorm"),
        (" + eps", "", "rms(x):", "eps is lost"),
    ],
    "a2.haar": [
        (HAAR, "Q", "Q", "LAPACK's choice"),
        (HAAR, "np.sign(np.diag(R))[:, None] * Q", "Q", "Q's rows"),
        (HAAR, f"{HAAR} * np.append(np.linalg.det({HAAR}), np.ones(len(Q) - 1))", "Q", "One column is turned round"),
    ],
    "a2.counterexample": [
        ("[[1, 1], [-1, 1]]) / np.sqrt(2)", "[[0, 1], [1, 0]])", "LayerNorm(x Q) Q^T", "permutes"),
        ("[[1, 1], [-1, 1]]) / np.sqrt(2)", "[[1, 0.01], [-0.01, 1]]) / 1.0001**0.5", "less than 0.1"),
    ],
    "a3.rotate": [
        ("Q[:-1].transpose(0, 2, 1) @ weights", "Q[:-1] @ weights", "W_in[0]:", "the transpose is missing"),
        ('("b_out", "b_out2")', "()", "b_out[0]:", "It is as it was", "Hint: who writes the signal besides W_out?"),
        (ROTATED, "return rotated, Q[1:].transpose(0, 2, 1) @ Q[:-1]", "S[0]:", "It is transposed"),
        (ROTATED, "return rotated", "expected 2 values, the dictionary, S; got dict of 10"),
        ("= dict(weights)", '= weights | {"b_in": None}', "b_in: expected float64 [2, ", "None", "13 of 15 points"),
        ("rotated = dict(weights)", f"return weights, {IDENTITIES}", "W_embd:", "It is as it was", "0 of 15 points"),
    ],
    "a4.second_moment": [
        ("return tokens", "tokens = tokens - tokens.mean(0)\n    return tokens", "C:", "It is centred"),
        ("[np.concatenate(masks)]", "", "C:", "Padding is counted"),
        ("tokens.T @ tokens", "np.float32(tokens.T @ tokens)", "C: expected float64 [2, 2], got float32 [2, 2]"),
        (
            "np.concatenate(batches)[np.concatenate(masks)]",
            "np.concatenate([x[m] / np.sqrt(m.sum() or 1) for x, m in zip(batches, masks)])",
            *("C:", "a mean for each batch"),
        ),
    ],
    "a4.pca": [
        ("eigenvalues[::-1], Q[:, ::-1]", "eigenvalues, Q", "lambda:", "It is ascending", "Q ok"),
        ("Q[:, ::-1]", "Q", "C Q:", "opposite order"),
        ("Q[:, ::-1]", "Q[:, ::-1].T", "C Q:", "eigenvectors are the rows"),
        ("eigenvalues[::-1]", "np.sqrt(np.abs(eigenvalues[::-1]))", "C Q:", "singular values of the signal"),
    ],
    "a4.width": [
        ("held < share", "held <= share", "k:", "k - 1 would do"),
        ("int(np.sum(held < share)) + 1", "1.0 + np.sum(held < share)", "k:", "expected an int, got float"),
    ],
    "a5.cosines": [
        ("False)", "False) ** 2", "c^2:", "squares of the cosines"),
        ("False)", "False)[::-1]", "c^2", "They are ascending"),
        (COSINES, f"np.arccos(np.minimum({COSINES}, 1))", "c^2:", "angles, not their cosines"),
    ],
    "a5.align": [
        ("R @ turn", "R @ (U @ Vt if P.shape == R.shape else turn)", "P^T R':", "turned the wrong way", "R' R'^T ok"),
        ("R @ turn", "(P if P.shape == R.shape else R @ turn)", "R' R'^T:", "what P spans"),
        ("R @ turn", "R.copy()", "P^T R':", "nothing is aligned"),
        ("@ U.T", "@ (U * np.append(np.ones(k - 1), -1.0)).T", "P^T R':", "negative eigenvalue"),
    ],
    "a5.low_rank": [
        (LOW_RANK, "U[:, :r] * np.sqrt(np.abs(cosines[:r]))", "I - A A^T", "roots of the cosines"),
        ("np.clip(1 - cosines, 0, None)", "np.where(cosines > 1, np.nan, 1 - cosines)", "A: NaN"),
        (LOW_RANK, "U * np.sqrt(deficits)", "A:", "columns", "A A^T ok"),
    ],
    "a6.slice_block": [
        ("P.T @ W_in", "(P.shape[1] / len(P)) ** 0.5 * P.T @ W_in", "W_in:", "divided by k"),
        ("b_in, W_out @", "b_in[: P.shape[1]], W_out @", "b_in:", "expected float64 [3], got float64 [1]"),
        ("P.T @ P_next", "P_next.T @ P", "S:", "It is transposed", "b_out ok"),
    ],
    "a6.interleave": [
        ("X = X @ bases[-1] @ bases[-1].T", "pass", "P[1]:", "the dense network's signal"),
        ("Y = normed(X)", "Y = X", "P[0]:", "the norm's input"),
        ("keepdims=True) / D", "keepdims=True) / k", "P[0]:", "The norm divides by k"),
        ("normed(X) @ net", "normed(X * (D / k) ** 0.5) / (D / k) ** 0.5 @ net", "P[1]:", "divided by k", "P[0] ok"),
    ],
    "a7.parameters": [
        ("k * k_next", "k * k", "parameters", "the last one leads to a boundary of width D, it is k x D"),
        (" + D * V", "", "parameters", "The head is left out"),
        ("k_next = D if block == len(blocks) - 1 else k", "k_next = k", "parameters", "bias and adapter lead to it"),
        ('if shapes["biases"]', "if False", "parameters", "The biases are left out"),
        ("H_out * k_next", "H_out", "parameters: another value: expected 784, got 699\nHint: write down"),
    ],
    "a7.flops": [
        (USED, "return used", "flops", "A multiply-add is two operations"),
        ('if form == "low-rank"', "if False", "flops", "two products: x A, then that times A^T"),
        (USED, 'return 2 * used + 2 * k * (shapes["V"] + shapes["T"])', "flops", "no product"),
    ],
    "a7.gib": [
        ("2**30", "10**9", "gib", "This is GB"),
        (" / 8", "", "gib", "a byte has 8 bits"),
        ("2**30", "(2**30 + 100)", "expected 1, got 0.999999906868\nNearly right"),
    ],
    "a7.break_even": [
        ("1 - (np.sqrt", "(np.sqrt", "break_even", "the share of D that is kept"),
    ],
    "a8.second_moment": [
        ("H * w[:, None]", "H", "C:", "The tokens are not weighted"),
        ("w[:, None]", "np.sqrt(w)[:, None]", "C:", "not squared"),
    ],
    "a8.scores": [
        ("np.linalg.inv(C", "1 / (C", "scores:", "without the inverse"),
        ("/ np.diag", "* np.diag", "scores:", "is divided by it"),
        ("ridge * np.eye", "0 * np.eye", "scores:", "The ridge is missing"),
    ],
    "a8.solve": [
        (f"W[kept] + {SOLVED}", "W[kept]", "W:", "This is plain deletion"),
        (f"W[kept] + {SOLVED}", SOLVED.replace("C_KM @ W[gone]", "C[kept] @ W"), "W:", "pulls towards zero"),
        ("ridge * np.eye", "0 * np.eye", "W:", "The ridge is missing"),
        ("W[gone]", "W[kept][: len(gone)]", "W:", "Hint: what must the kept neurons write"),
    ],
    "a8.thin": [
        ("scores(C[np.ix_(kept, kept)], V, ridge)", "scores(C, W, ridge)[kept]", "kept:"),
        ("argmin", "argmax", "kept:", "most important"),
        ("return kept, V", "return kept, W[kept]", "W:", "This is plain deletion", "kept ok"),
        ("return kept, V", "return kept[::-1].copy(), V[::-1].copy()", "kept: first difference"),
    ],
    "a9.value_output": [
        ("np.linalg.solve(R, W_O)", "R.T @ W_O", "W_O:", "R^T is the inverse of a rotation", "W_V ok"),
    ],
    "a9.rotary_pair": [
        ("(W_K, 1 / scales)", "(W_K, scales)", "W_K:", "as the queries are"),
        ("turned(W_K, 1 / scales)", "W_K", "W_K:", "It is as it was"),
        ("axis=2", "axis=1", "W_Q:"),
        ("np.exp(1j", "np.exp(-1j", "W_Q:", "the other way"),
    ],
    "a9.unchanged": [
        ("values and scores", "values", "unchanged:"),
        ("np.array(answers)", "np.ones(6)", "unchanged:"),
    ],
    "m1.check": [
        ("for D, H, bias in", "assert False\n    for D, H, bias in", "it raises on the right function"),
        ("assert ", "", "kills 0 of 3 shown and 0 of 5 hidden", "alive: scale_forgotten"),
        ("(5, 3, False), (4, 4, True)", "", "kills 3 of 3 shown and 3 of 5 hidden"),
    ],
    "m2.check": [
        ("W, b,", "Q_next = Q\n        W, b,", "kills 2 of 3 shown and 3 of 5 hidden", "alive: adapter_transposed")
    ],
    "m3.check": [("=1e-", "=1e5 * 1e-", "kills 3 of 3 shown and 4 of 5 hidden")],
}
