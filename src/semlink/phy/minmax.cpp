// SPDX-License-Identifier: Apache-2.0
// The rounds of minmax.py, which explains them, for as many channels at a time as a vector register has lanes.
//
// USERS, RECEIVE, TRANSMIT and STREAMS are given when this is compiled, so that all loops have fixed ends and all that
// belongs to a few channels stays in the nearest cache. Positive definite systems are solved by L D L^H. Of the moves
// A^-1 x only inner products with one another are needed before the step is known, so x goes through L alone, and
// through L^H only what the step is made of.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

constexpr int K = USERS, M = RECEIVE, N = TRANSMIT, D = STREAMS;
#ifdef __AVX512F__
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int64_t GAINS = K * K * M * N, PRECODING = K * N * D, FILTERING = K * M * D;  // complex numbers of a channel
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

// sum -= a b
inline void subtract(Complex &sum, Complex a, Complex b) { add(sum, {-a.re, -a.im}, b); }

// sum -= conj(a) b
inline void subtract_conjugate(Complex &sum, Complex a, Complex b) { add_conjugate(sum, {-a.re, -a.im}, b); }

// sum += a b of a real number
inline void add(Complex &sum, Complex a, Lane b) {
    sum.re += a.re * b;
    sum.im += a.im * b;
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
    Complex L[size][size], LD[size][size];
    Lane inverse[size];  // of D

    void of(const Complex (&A)[size][size]) {
        for (int j = 0; j < size; j++) {
            Lane pivot = A[j][j].re;
            for (int k = 0; k < j; k++) pivot -= inner(L[j][k], LD[j][k]);
            inverse[j] = 1 / pivot;
            for (int i = j + 1; i < size; i++) {
                LD[i][j] = A[i][j];
                for (int k = 0; k < j; k++) subtract_conjugate(LD[i][j], L[j][k], LD[i][k]);
                L[i][j] = LD[i][j] * inverse[j];
            }
        }
    }

    // x becomes L^-1 x
    void forward(Complex (&x)[size][D]) const {
        for (int i = 1; i < size; i++)
            for (int k = 0; k < i; k++)
                for (int c = 0; c < D; c++) subtract(x[i][c], L[i][k], x[k][c]);
    }

    // x becomes L^-H D^-1 x
    void backward(Complex (&x)[size][D]) const {
        for (int i = size - 1; i >= 0; i--)
            for (int c = 0; c < D; c++) {
                x[i][c] = x[i][c] * inverse[i];
                for (int k = i + 1; k < size; k++) subtract_conjugate(x[i][c], L[k][i], x[k][c]);
            }
    }
};

struct State {
    Complex V[K][N][D], U[K][M][D];
    Lane p[K], q[K], bound;

    // What stands beside V and U at first.
    void begin() {
        for (int k = 0; k < K; k++) {
            p[k] = lane(1.0 / K);
            q[k] = lane(0.1);
        }
        bound = lane(0);
    }
};

struct Round {
    double barrier, momentum, hold;
};

struct Constants {
    double louder, share, gap;
};

// All that a few channels need, on the heap: many antennas would fill a stack.
struct Work {
    Complex H[K][K][M][N];
    Lane n0;
    State state, probe, anew;
    Complex filters[K][M][D];
    Complex covariance[M][M];
    Factors<M> receiving;
    Complex G[K][K][D][N];       // what filters make of the channels
    Complex missed[K][K][D][D];  // how far streams arrive from where they should
    Complex slopes[K + 1][K][N][D];  // halves of the gradients of every error and of the power, then L^-1 of them
    Complex A[N][N];
    Factors<N> factors[K];
    Complex moves[K][N][D];  // L^-1 of the gradient of the Lagrangian, then the step
};

Lane inverse_step(Lane slack, Lane slope, Lane bend) {
    return (slope + root(slope * slope + 4 * bend * slack)) / (2 * slack);
}

void renew_filters(Work &work, State &state, double momentum) {
    auto &covariance = work.covariance;
    for (int k = 0; k < K; k++) {
        Complex best[M][D];
        memset(covariance, 0, sizeof covariance);
        for (int i = 0; i < M; i++) covariance[i][i].re = work.n0;
        for (int j = 0; j < K; j++) {
            Complex arriving[M][D] = {};
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++)
                    for (int c = 0; c < D; c++) add(arriving[m][c], work.H[k][j][m][n], state.V[j][n][c]);
            for (int i = 0; i < M; i++)
                for (int m = 0; m <= i; m++)
                    for (int c = 0; c < D; c++) add_conjugate(covariance[i][m], arriving[m][c], arriving[i][c]);
            if (j == k) memcpy(best, arriving, sizeof best);
        }
        work.receiving.of(covariance);
        work.receiving.forward(best);
        work.receiving.backward(best);
        for (int m = 0; m < M; m++)
            for (int c = 0; c < D; c++) {
                work.filters[k][m][c].re = best[m][c].re + momentum * (best[m][c].re - state.U[k][m][c].re);
                work.filters[k][m][c].im = best[m][c].im + momentum * (best[m][c].im - state.U[k][m][c].im);
                state.U[k][m][c] = best[m][c];
            }
    }
}

// Mean square errors of all users, for the filters that stand in work.
void measure(Work &work, const Complex (&V)[K][N][D], Lane (&mse)[K]) {
    for (int k = 0; k < K; k++) {
        mse[k] = work.n0 * inner(work.filters[k], work.filters[k]);
        for (int j = 0; j < K; j++) {
            auto &missed = work.missed[k][j];
            memset(missed, 0, sizeof missed);
            for (int c = 0; c < D; c++)
                for (int n = 0; n < N; n++) {
                    Complex sum{};
                    for (int m = 0; m < M; m++) add_conjugate(sum, work.filters[k][m][c], work.H[k][j][m][n]);
                    work.G[k][j][c][n] = sum;
                    for (int e = 0; e < D; e++) add(missed[c][e], sum, V[j][n][e]);
                }
            for (int c = 0; c < D && j == k; c++) missed[c][c].re -= 1;
            for (int c = 0; c < D; c++)
                for (int e = 0; e < D; e++) mse[k] += inner(missed[c][e], missed[c][e]);
        }
    }
}

// One round of minmax.py: the state becomes the next; the gap and the largest error are those of the given precoders.
void advance(Work &work, State &state, const Round &round, const Constants &constants, Lane &gap, Lane &highest) {
    auto &[V, U, p, q, bound] = state;
    auto &filters = work.filters;
    auto &G = work.G;
    auto &slopes = work.slopes;
    auto &A = work.A;
    auto &factors = work.factors;
    auto &moves = work.moves;
    if (round.hold != 0) {
        memcpy(filters, U, sizeof filters);
    } else {
        Lane most = lane(1e-300);
        for (int j = 0; j < K; j++) most = larger(most, inner(V[j], V[j]));
        const Lane louder = root(1 + constants.louder * (N / most - 1));
        for (int j = 0; j < K; j++)
            for (int n = 0; n < N; n++)
                for (int c = 0; c < D; c++) V[j][n][c] = V[j][n][c] * louder;
        renew_filters(work, state, round.momentum);
    }

    Lane mse[K], s[K], w[K];
    measure(work, V, mse);
    highest = lane(0);
    for (int k = 0; k < K; k++) {
        highest = larger(highest, mse[k]);
        for (int j = 0; j < K; j++)
            for (int n = 0; n < N; n++)
                for (int e = 0; e < D; e++) {
                    Complex sum{};
                    for (int c = 0; c < D; c++) add_conjugate(sum, G[k][j][c][n], work.missed[k][j][c][e]);
                    slopes[k][j][n][e] = sum;
                }
    }
    bound = bound > highest ? bound : 1.01 * highest;

    Lane products[K][K] = {}, crossed[K][K], diagonal[K], wish[K], power_wish[K];
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
    const Lane target = larger(round.barrier * bound, constants.share / (2 * K) * distance);
    Lane inverse_p[K], inverse_q[K];
    for (int k = 0; k < K; k++) {
        inverse_p[k] = 1 / p[k];
        wish[k] = target * inverse_p[k] - s[k];
    }

    for (int j = 0; j < K; j++) {
        memset(A, 0, sizeof A);
        for (int i = 0; i < N; i++) A[i][i].re = q[j];
        for (int k = 0; k < K; k++)
            for (int c = 0; c < D; c++)
                for (int i = 0; i < N; i++)
                    for (int n = 0; n <= i; n++) add_conjugate(A[i][n], G[k][j][c][i] * p[k], G[k][j][c][n]);
        factors[j].of(A);
        memcpy(slopes[K][j], V[j], sizeof V[j]);
        for (int a = 0; a <= K; a++) factors[j].forward(slopes[a][j]);

        // The residual, the gradient of the Lagrangian, is what these make with the prices.
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) {
                moves[j][n][c] = slopes[K][j][n][c] * q[j];
                for (int a = 0; a < K; a++) add(moves[j][n][c], slopes[a][j][n][c], p[a]);
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
        power_wish[j] = target * inverse_q[j] - w[j] - with_power;
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
                add(dV[n][c], slopes[K][j][n][c], dq[j]);
                for (int a = 0; a < K; a++) add(dV[n][c], slopes[a][j][n][c], dp[a]);
            }
        // The slope of an error along the step, from what both are through L.
        for (int k = 0; k < K; k++)
            for (int n = 0; n < N; n++)
                for (int c = 0; c < D; c++)
                    slope[k] -= 2 * factors[j].inverse[n] * inner(slopes[k][j][n][c], dV[n][c]);
        factors[j].backward(dV);  // the step is against it
        for (int k = 0; k < K; k++)
            for (int c = 0; c < D; c++)
                for (int e = 0; e < D; e++) {
                    Complex bent{};
                    for (int n = 0; n < N; n++) add(bent, G[k][j][c][n], dV[n][e]);
                    bend[k] += inner(bent, bent);
                }
        shrinking = larger(shrinking, inverse_step(w[j], -2 * inner(V[j], dV), inner(dV, dV)));
        shrinking = larger(shrinking, -dq[j] * inverse_q[j]);
    }
    for (int k = 0; k < K; k++) {
        shrinking = larger(shrinking, inverse_step(s[k], slope[k], bend[k]));
        shrinking = larger(shrinking, -dp[k] * inverse_p[k]);
    }
    const Lane step = 0.95 / shrinking;
    for (int j = 0; j < K; j++) {
        for (int n = 0; n < N; n++)
            for (int c = 0; c < D; c++) add(V[j][n][c], moves[j][n][c], -step);
        p[j] += step * dp[j];
        q[j] += step * dq[j];
    }
    bound += step * rise;
}

// Take all rounds; the last one says what the precoders of the others are worth. What is not a number shows in largest.
void run(
    Work &work, State &state, const Round *rounds, int64_t count, const Constants &constants, Lane &gap, Lane &largest
) {
    state.begin();
    for (int64_t r = 0; r + 1 < count; r++) advance(work, state, rounds[r], constants, gap, largest);
    work.probe = state;
    advance(work, work.probe, rounds[count - 1], constants, gap, largest);
    for (int k = 0; k < K; k++) largest += 0 * (inner(state.V[k], state.V[k]) + inner(state.U[k], state.U[k]));
}

// Copy one channel's complex numbers into lane i, times a factor, or back.
void load(Complex *to, int64_t count, const double *from, int i, double factor) {
    for (int64_t n = 0; n < count; n++) {
        to[n].re[i] = factor * from[2 * n];
        to[n].im[i] = factor * from[2 * n + 1];
    }
}

void store(double *to, int64_t count, const Complex *from, int i) {
    for (int64_t n = 0; n < count; n++) {
        to[2 * n] = from[n].re[i];
        to[2 * n + 1] = from[n].im[i];
    }
}

// Start on channels first to first + W - 1, the last one over and over where there are fewer.
void fill(Work &work, const double *H, const double *n0, const double *V, int64_t first, int64_t batch, double factor) {
    memset(&work.state, 0, sizeof work.state);
    for (int i = 0; i < W; i++) {
        const int64_t channel = first + i < batch ? first + i : batch - 1;
        work.n0[i] = n0[channel];
        load(&work.H[0][0][0][0], GAINS, H + 2 * GAINS * channel, i, 1);
        load(&work.state.V[0][0][0], PRECODING, V + 2 * PRECODING * channel, i, factor);
    }
}

}  // namespace

// Write the filters of least error for V, and the errors. U: (batch, K, M, D) complex, mse: (batch, K).
extern "C" void filter(const double *H, const double *n0, const double *V, double *U, double *mse, int64_t batch) {
    const auto work = std::make_unique<Work>();
    for (int64_t first = 0; first < batch; first += W) {
        Lane errors[K];
        fill(*work, H, n0, V, first, batch, 1);
        renew_filters(*work, work->state, 0);
        measure(*work, work->state.V, errors);
        for (int i = 0; i < W && first + i < batch; i++) {
            store(U + 2 * FILTERING * (first + i), FILTERING, &work->filters[0][0][0], i);
            for (int k = 0; k < K; k++) mse[K * (first + i) + k] = errors[k][i];
        }
    }
}

// Improve V where it is. H: (batch, K, K, M, N) and V: (batch, K, N, D) complex; n0, worst and gap: (batch,).
// Channels whose gap is not within the limit find their precoders anew, for their last filters and from nothing.
extern "C" void descend(
    const double *H, const double *n0, double *V, double *worst, double *gap, int64_t batch, const Round *rounds,
    int64_t count, const Round *again, int64_t count_again, const Constants *constants, int64_t
) {
    const auto work = std::make_unique<Work>();
    State &state = work->state, &anew = work->anew;
    for (int64_t first = 0; first < batch; first += W) {
        fill(*work, H, n0, V, first, batch, M_SQRT1_2);  // well inside the constraint
        Lane proof, largest;
        run(*work, state, rounds, count, *constants, proof, largest);
        const auto solved = (proof >= -constants->gap) & (proof <= constants->gap);
        bool late = false;
        for (int i = 0; i < W; i++) late |= !solved[i];
        if (late) {
            Lane other, error;
            memset(&anew, 0, sizeof anew);
            memcpy(anew.U, state.U, sizeof anew.U);
            run(*work, anew, again, count_again, *constants, other, error);
            proof = solved ? proof : other;
            largest = solved ? largest : error;
            Complex *kept = &state.V[0][0][0], *found = &anew.V[0][0][0];
            for (int64_t n = 0; n < PRECODING; n++)
                kept[n] = {solved ? kept[n].re : found[n].re, solved ? kept[n].im : found[n].im};
        }
        for (int i = 0; i < W && first + i < batch; i++) {
            worst[first + i] = largest[i];
            gap[first + i] = proof[i];
            store(V + 2 * PRECODING * (first + i), PRECODING, &state.V[0][0][0], i);
        }
    }
}
