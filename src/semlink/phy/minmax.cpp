// SPDX-License-Identifier: Apache-2.0
// The rounds of minmax.py, which explains them, for as many channels at a time as a vector register has lanes.
//
// USERS, RECEIVE, TRANSMIT and STREAMS are given when this is compiled, so that all loops have fixed ends and all that
// belongs to a few channels stays in the nearest cache. Matrices are complex here, where minmax.py embeds them in real
// ones; positive definite systems are solved by L D L^H. Of the moves A^-1 x only inner products with one another are
// needed before the step is known, so x goes through L alone, and through L^H only what the step is made of.

#include <cmath>
#include <cstdint>

namespace {

constexpr int K = USERS, M = RECEIVE, N = TRANSMIT, D = STREAMS;
#ifdef __AVX512F__
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef double Lane __attribute__((vector_size(8 * W)));

Lane lane(double x) { return x - Lane{}; }

Lane larger(Lane a, Lane b) { return a > b ? a : b; }

Lane root(Lane x) {
    for (int i = 0; i < W; i++) x[i] = std::sqrt(x[i]);
    return x;
}

struct Complex {
    Lane re, im;
};

Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
Complex operator*(Complex a, Lane b) { return {a.re * b, a.im * b}; }

// sum += a b
inline void add(Complex &sum, Complex a, Complex b) {
    sum.re += a.re * b.re - a.im * b.im;
    sum.im += a.re * b.im + a.im * b.re;
}

// sum += conj(a) b
inline void add_conjugate(Complex &sum, Complex a, Complex b) {
    sum.re += a.re * b.re + a.im * b.im;
    sum.im += a.re * b.im - a.im * b.re;
}

// Re conj(a) b
inline Lane inner(Complex a, Complex b) { return a.re * b.re + a.im * b.im; }

template <int rows> Lane inner(const Complex (&a)[rows][D], const Complex (&b)[rows][D]) {
    Lane sum{};
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < D; c++) sum += inner(a[i][c], b[i][c]);
    return sum;
}

// A Hermitian positive definite matrix, of which the lower triangle is read, as L D L^H with ones on L's diagonal.
template <int size> struct Factors {
    Complex L[size][size];
    Lane inverse[size];  // of D

    void of(const Complex (&A)[size][size]) {
        for (int j = 0; j < size; j++) {
            Lane pivot = A[j][j].re;
            for (int k = 0; k < j; k++) pivot -= inner(L[j][k], A_[j][k]);
            inverse[j] = 1 / pivot;
            for (int i = j + 1; i < size; i++) {
                A_[i][j] = A[i][j];
                for (int k = 0; k < j; k++) {
                    Complex less{};
                    add_conjugate(less, L[j][k], A_[i][k]);
                    A_[i][j] = A_[i][j] - less;
                }
                L[i][j] = A_[i][j] * inverse[j];
            }
        }
    }

    // x becomes L^-1 x
    void forward(Complex (&x)[size][D]) const {
        for (int i = 1; i < size; i++)
            for (int k = 0; k < i; k++)
                for (int c = 0; c < D; c++) {
                    Complex less{};
                    add(less, L[i][k], x[k][c]);
                    x[i][c] = x[i][c] - less;
                }
    }

    // x becomes L^-H D^-1 x
    void backward(Complex (&x)[size][D]) const {
        for (int i = size - 1; i >= 0; i--)
            for (int c = 0; c < D; c++) {
                x[i][c] = x[i][c] * inverse[i];
                for (int k = i + 1; k < size; k++) {
                    Complex less{};
                    add_conjugate(less, L[k][i], x[k][c]);
                    x[i][c] = x[i][c] - less;
                }
            }
    }

  private:
    Complex A_[size][size];  // L D
};

struct State {
    Complex V[K][N][D], U[K][M][D];
    Lane p[K], q[K], bound;
};

struct Constants {
    double louder, share, gap;
};

Lane inverse_step(Lane slack, Lane slope, Lane bend) {
    return (slope + root(slope * slope + 4 * bend * slack)) / (2 * slack);
}

void best_filters(const Complex (&H)[K][K][M][N], Lane n0, State &state, double momentum, Complex (&filters)[K][M][D]) {
    for (int k = 0; k < K; k++) {
        Complex covariance[M][M] = {}, best[M][D];
        for (int i = 0; i < M; i++) covariance[i][i].re = n0;
        for (int j = 0; j < K; j++) {
            Complex arriving[M][D] = {};
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++)
                    for (int c = 0; c < D; c++) add(arriving[m][c], H[k][j][m][n], state.V[j][n][c]);
            for (int i = 0; i < M; i++)
                for (int m = 0; m <= i; m++)
                    for (int c = 0; c < D; c++) add_conjugate(covariance[i][m], arriving[m][c], arriving[i][c]);
            if (j == k)
                for (int m = 0; m < M; m++)
                    for (int c = 0; c < D; c++) best[m][c] = arriving[m][c];
        }
        Factors<M> factors;
        factors.of(covariance);
        factors.forward(best);
        factors.backward(best);
        for (int m = 0; m < M; m++)
            for (int c = 0; c < D; c++) {
                filters[k][m][c] = best[m][c];
                filters[k][m][c].re += momentum * (best[m][c].re - state.U[k][m][c].re);
                filters[k][m][c].im += momentum * (best[m][c].im - state.U[k][m][c].im);
                state.U[k][m][c] = best[m][c];
            }
    }
}

// One round of minmax.py: the state becomes the next; the gap and the largest error are those of the given precoders.
void advance(
    const Complex (&H)[K][K][M][N], Lane n0, State &state, double barrier, double momentum, bool hold,
    const Constants &constants, Lane &gap, Lane &highest
) {
    auto &[V, U, p, q, bound] = state;
    Complex filters[K][M][D];
    if (hold) {
        for (int k = 0; k < K; k++)
            for (int m = 0; m < M; m++)
                for (int c = 0; c < D; c++) filters[k][m][c] = U[k][m][c];
    } else {
        Lane most = lane(1e-300);
        for (int j = 0; j < K; j++) most = larger(most, inner(V[j], V[j]));
        const Lane louder = root(1 + constants.louder * (N / most - 1));
        for (int j = 0; j < K; j++)
            for (int n = 0; n < N; n++)
                for (int c = 0; c < D; c++) V[j][n][c] = V[j][n][c] * louder;
        best_filters(H, n0, state, momentum, filters);
    }

    Complex G[K][K][D][N];
    Complex slopes[K + 1][K][N][D];  // halves of the gradients of every error and of the power, then L^-1 of them
    Lane mse[K], s[K], w[K];
    highest = lane(0);
    for (int k = 0; k < K; k++) {
        mse[k] = n0 * inner(filters[k], filters[k]);
        for (int j = 0; j < K; j++) {
            Complex missed[D][D] = {};
            for (int c = 0; c < D; c++)
                for (int n = 0; n < N; n++) {
                    Complex sum{};
                    for (int m = 0; m < M; m++) add_conjugate(sum, filters[k][m][c], H[k][j][m][n]);
                    G[k][j][c][n] = sum;
                    for (int e = 0; e < D; e++) add(missed[c][e], sum, V[j][n][e]);
                }
            if (j == k)
                for (int c = 0; c < D; c++) missed[c][c].re -= 1;
            for (int c = 0; c < D; c++)
                for (int e = 0; e < D; e++) mse[k] += inner(missed[c][e], missed[c][e]);
            for (int n = 0; n < N; n++)
                for (int e = 0; e < D; e++) {
                    Complex sum{};
                    for (int c = 0; c < D; c++) add_conjugate(sum, G[k][j][c][n], missed[c][e]);
                    slopes[k][j][n][e] = sum;
                }
        }
        highest = larger(highest, mse[k]);
    }
    bound = bound > highest ? bound : 1.01 * highest;

    Lane products[K][K] = {}, crossed[K][K], diagonal[K], wish[K], power_wish[K];
    Complex moves[K][N][D];  // kept for the step: L^-1 of the Lagrangian's gradient
    Lane distance{}, dual{};
    for (int k = 0; k < K; k++) {
        s[k] = bound - mse[k];
        distance += p[k] * s[k];
        dual += p[k] * mse[k];
    }
    for (int j = 0; j < K; j++) {
        w[j] = N - inner(V[j], V[j]);
        distance += q[j] * w[j];
        dual -= q[j] * w[j];
    }
    const Lane target = larger(barrier * bound, constants.share / (2 * K) * distance);
    Lane inverse_p[K], inverse_q[K];
    for (int k = 0; k < K; k++) {
        inverse_p[k] = 1 / p[k];
        wish[k] = target * inverse_p[k] - s[k];
    }

    Factors<N> factors[K];
    for (int j = 0; j < K; j++) {
        Complex A[N][N] = {};
        for (int i = 0; i < N; i++) A[i][i].re = q[j];
        for (int k = 0; k < K; k++)
            for (int c = 0; c < D; c++)
                for (int i = 0; i < N; i++)
                    for (int n = 0; n <= i; n++) add_conjugate(A[i][n], G[k][j][c][i] * p[k], G[k][j][c][n]);
        factors[j].of(A);
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) slopes[K][j][n][c] = V[j][n][c];
        for (int a = 0; a <= K; a++) factors[j].forward(slopes[a][j]);

        // The residual, the gradient of the Lagrangian, is what these make with the prices.
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) {
                Complex sum = slopes[K][j][n][c] * q[j];
                for (int a = 0; a < K; a++) {
                    sum.re += p[a] * slopes[a][j][n][c].re;
                    sum.im += p[a] * slopes[a][j][n][c].im;
                }
                moves[j][n][c] = sum;
            }
        Lane with_power{}, power{};
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) {
                const Lane twice = 2 * factors[j].inverse[n];
                const Complex residual = moves[j][n][c] * twice, own = slopes[K][j][n][c] * twice;
                dual -= 0.5 * inner(moves[j][n][c], residual);
                with_power += inner(slopes[K][j][n][c], residual);
                power += inner(slopes[K][j][n][c], own);
            }
        inverse_q[j] = 1 / q[j];
        diagonal[j] = power + w[j] * inverse_q[j];
        power_wish[j] = (target * inverse_q[j] - w[j] - with_power);
        const Lane inverse = 1 / diagonal[j];
        for (int k = 0; k < K; k++) {
            Lane with_residual{};
            crossed[k][j] = Lane{};
            for (int n = 0; n < N; n++)
                for (int c = 0; c < D; c++) {
                    const Complex scaled = slopes[k][j][n][c] * (2 * factors[j].inverse[n]);
                    with_residual += inner(scaled, moves[j][n][c]);
                    crossed[k][j] += inner(scaled, slopes[K][j][n][c]);
                    for (int l = 0; l <= k; l++) products[k][l] += inner(scaled, slopes[l][j][n][c]);
                }
            wish[k] -= with_residual;
            wish[k] -= crossed[k][j] * power_wish[j] * inverse;
            for (int l = 0; l <= k; l++) products[k][l] -= crossed[k][j] * crossed[l][j] * inverse;
        }
        diagonal[j] = inverse;
    }
    gap = 1 - dual / highest;

    // The prices, by L D L^T of their symmetric system, for two right sides.
    Lane L[K][K], raw[K][K], pivots[K], priced[K], free_sum{}, priced_sum{};
    for (int j = 0; j < K; j++) {
        Lane pivot = products[j][j] + s[j] * inverse_p[j];
        for (int k = 0; k < j; k++) pivot -= L[j][k] * raw[j][k];
        pivots[j] = 1 / pivot;
        for (int i = j + 1; i < K; i++) {
            raw[i][j] = products[i][j];
            for (int k = 0; k < j; k++) raw[i][j] -= raw[i][k] * L[j][k];
            L[i][j] = raw[i][j] * pivots[j];
        }
    }
    for (int i = 0; i < K; i++) {
        priced[i] = lane(1);
        for (int k = 0; k < i; k++) {
            wish[i] -= L[i][k] * wish[k];
            priced[i] -= L[i][k] * priced[k];
        }
    }
    for (int i = K - 1; i >= 0; i--) {
        wish[i] *= pivots[i];
        priced[i] *= pivots[i];
        for (int k = i + 1; k < K; k++) {
            wish[i] -= L[k][i] * wish[k];
            priced[i] -= L[k][i] * priced[k];
        }
    }
    for (int k = 0; k < K; k++) {
        free_sum += wish[k] + p[k];
        priced_sum += priced[k];
    }
    const Lane rise = (free_sum - 1) / priced_sum;
    Lane dp[K], dq[K], shrinking = lane(0.95);
    for (int k = 0; k < K; k++) dp[k] = wish[k] - rise * priced[k];
    Lane slope[K], bend[K] = {};
    for (int k = 0; k < K; k++) slope[k] = -rise;
    for (int j = 0; j < K; j++) {
        Lane sum = power_wish[j];
        for (int k = 0; k < K; k++) sum -= crossed[k][j] * dp[k];
        dq[j] = sum * diagonal[j];
        auto &dV = moves[j];
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) {
                dV[n][c].re += dq[j] * slopes[K][j][n][c].re;
                dV[n][c].im += dq[j] * slopes[K][j][n][c].im;
                for (int a = 0; a < K; a++) {
                    dV[n][c].re += dp[a] * slopes[a][j][n][c].re;
                    dV[n][c].im += dp[a] * slopes[a][j][n][c].im;
                }
            }
        // The slope of an error along the step, from what both are through L.
        for (int k = 0; k < K; k++)
            for (int n = 0; n < N; n++)
                for (int c = 0; c < D; c++)
                    slope[k] -= 2 * factors[j].inverse[n] * inner(slopes[k][j][n][c], dV[n][c]);
        factors[j].backward(dV);
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) dV[n][c] = dV[n][c] * lane(-1);
        for (int k = 0; k < K; k++)
            for (int c = 0; c < D; c++)
                for (int e = 0; e < D; e++) {
                    Complex bent{};
                    for (int n = 0; n < N; n++) add(bent, G[k][j][c][n], dV[n][e]);
                    bend[k] += inner(bent, bent);
                }
        shrinking = larger(shrinking, inverse_step(w[j], 2 * inner(V[j], dV), inner(dV, dV)));
        shrinking = larger(shrinking, -dq[j] * inverse_q[j]);
    }
    for (int k = 0; k < K; k++) {
        shrinking = larger(shrinking, inverse_step(s[k], slope[k], bend[k]));
        shrinking = larger(shrinking, -dp[k] * inverse_p[k]);
    }
    const Lane step = 0.95 / shrinking;
    for (int j = 0; j < K; j++) {
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) {
                V[j][n][c].re += step * moves[j][n][c].re;
                V[j][n][c].im += step * moves[j][n][c].im;
            }
        p[j] += step * dp[j];
        q[j] += step * dq[j];
    }
    bound += step * rise;
}

void begin(State &state) {
    for (int k = 0; k < K; k++) {
        state.p[k] = lane(1.0 / K);
        state.q[k] = lane(0.1);
    }
    state.bound = lane(0);
}

struct Round {
    double barrier, momentum, hold;
};

// Take all rounds; the last one says what the precoders of the others are worth. What is not a number shows in largest.
void run(
    const Complex (&H)[K][K][M][N], Lane n0, State &state, const Round *rounds, int64_t count,
    const Constants &constants, Lane &gap, Lane &largest
) {
    for (int64_t r = 0; r + 1 < count; r++)
        advance(H, n0, state, rounds[r].barrier, rounds[r].momentum, rounds[r].hold != 0, constants, gap, largest);
    State probe = state;
    const Round &last = rounds[count - 1];
    advance(H, n0, probe, last.barrier, last.momentum, last.hold != 0, constants, gap, largest);
    for (int k = 0; k < K; k++) largest += 0 * (inner(state.V[k], state.V[k]) + inner(state.U[k], state.U[k]));
}

}  // namespace

// Improve V where it is. H: (batch, K, K, M, N) and V: (batch, K, N, D) complex; n0, worst and gap: (batch,).
// Channels whose gap is not below the limit find their precoders anew, for their last filters and from nothing.
extern "C" void descend(
    const double *H, const double *n0, double *V, double *worst, double *gap, int64_t batch, const Round *rounds,
    int64_t count, const Round *again, int64_t count_again, const Constants *limits, int64_t
) {
    const Constants constants = *limits;
    for (int64_t first = 0; first < batch; first += W) {
        Complex gains[K][K][M][N];
        State state{};
        Lane level;
        for (int i = 0; i < W; i++) {
            const int64_t c = first + i < batch ? first + i : batch - 1;
            level[i] = n0[c];
            const double *from = H + c * 2 * K * K * M * N;
            for (Complex *to = &gains[0][0][0][0]; to < &gains[0][0][0][0] + K * K * M * N; to++) {
                to->re[i] = *from++;
                to->im[i] = *from++;
            }
            from = V + c * 2 * K * N * D;
            for (Complex *to = &state.V[0][0][0]; to < &state.V[0][0][0] + K * N * D; to++) {
                to->re[i] = *from++ * M_SQRT1_2;
                to->im[i] = *from++ * M_SQRT1_2;
            }
        }
        begin(state);
        Lane proof, largest;
        run(gains, level, state, rounds, count, constants, proof, largest);
        bool late = false;
        for (int i = 0; i < W; i++) late |= !(proof[i] <= constants.gap);
        if (late) {
            State anew{};
            for (int k = 0; k < K; k++)
                for (int m = 0; m < M; m++)
                    for (int c = 0; c < D; c++) anew.U[k][m][c] = state.U[k][m][c];
            begin(anew);
            Lane other, error;
            run(gains, level, anew, again, count_again, constants, other, error);
            for (int i = 0; i < W; i++)
                if (!(proof[i] <= constants.gap)) {
                    proof[i] = other[i];
                    largest[i] = error[i];
                    for (int k = 0; k < K; k++)
                        for (int n = 0; n < N; n++)
                            for (int c = 0; c < D; c++) {
                                state.V[k][n][c].re[i] = anew.V[k][n][c].re[i];
                                state.V[k][n][c].im[i] = anew.V[k][n][c].im[i];
                            }
                }
        }
        for (int i = 0; i < W && first + i < batch; i++) {
            worst[first + i] = largest[i];
            gap[first + i] = proof[i];
            double *to = V + (first + i) * 2 * K * N * D;
            for (const Complex *from = &state.V[0][0][0]; from < &state.V[0][0][0] + K * N * D; from++) {
                *to++ = from->re[i];
                *to++ = from->im[i];
            }
        }
    }
}
