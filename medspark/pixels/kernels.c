/* Sums that one pass over an image can make and numpy needs several passes for: of a tile's colours and its luminance's Laplacian
 * (tile_measure.py), of a slice's values and their squares (medspark/series/rescale.py). What numpy does is what holds where this was not
 * compiled. No Python here: plain C, called through ctypes (native.py).
 */
#include <stdint.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#endif

/* ITU-R 601 luma in 16-bit fixed point, rounded: the integers that Pillow's convert("L") uses. */
#define RED 19595
#define GREEN 38470
#define BLUE 7471
#define HALF 0x8000
#define FOLD 1024 /* columns whose squares an int32 holds: a Laplacian is at most 1020, 1024 * 1020^2 < 2^31 */

static void luma_row(const uint8_t *rgb, int from, int cols, int16_t *y, int64_t sums[3])
{
    int64_t red = 0, green = 0, blue = 0;
    for (int col = from; col < cols; col++) {
        const int r = rgb[3 * col], g = rgb[3 * col + 1], b = rgb[3 * col + 2];
        red += r, green += g, blue += b;
        y[col] = (int16_t)((RED * r + GREEN * g + BLUE * b + HALF) >> 16);
    }
    sums[0] += red, sums[1] += green, sums[2] += blue;
}

static inline __attribute__((always_inline)) void laplacian_row(
    const int16_t *up, const int16_t *y, const int16_t *down, int cols, int64_t *sum, int64_t *squares)
{
    for (int first = 1; first < cols - 1; first += FOLD) {
        const int last = first + FOLD < cols - 1 ? first + FOLD : cols - 1;
        int32_t s = 0, q = 0;
        for (int col = first; col < last; col++) {
            const int16_t v = (int16_t)(up[col] + down[col] + y[col - 1] + y[col + 1] - 4 * y[col]);
            s += v, q += v * v;
        }
        *sum += s, *squares += q;
    }
}

static void laplacian_plain(const int16_t *up, const int16_t *y, const int16_t *down, int cols, int64_t *sum, int64_t *squares)
{
    laplacian_row(up, y, down, cols, sum, squares);
}

#if defined(__x86_64__)
AVX2 static void laplacian_avx2(const int16_t *up, const int16_t *y, const int16_t *down, int cols, int64_t *sum, int64_t *squares)
{
    laplacian_row(up, y, down, cols, sum, squares);
}

/* Eight pixels at a time; what is left, and the last bytes of the row (a load reads four beyond its pixels), goes to `luma_row`. */
AVX2 static void luma_row_avx2(const uint8_t *rgb, int cols, int16_t *y, int64_t sums[3])
{
    const __m256i rg = _mm256_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1, 0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1);
    const __m256i bg = _mm256_setr_epi8(2, -1, 1, -1, 5, -1, 4, -1, 8, -1, 7, -1, 11, -1, 10, -1, 2, -1, 1, -1, 5, -1, 4, -1, 8, -1, 7, -1, 11, -1, 10, -1);
    /* a 16-bit product is signed, so green's weight is taken in two parts, one beside red, one beside blue */
    const __m256i weigh_rg = _mm256_set1_epi32((int)((GREEN - 16384) << 16 | RED)), weigh_bg = _mm256_set1_epi32(16384 << 16 | BLUE);
    const __m256i first = _mm256_set1_epi32(1), second = _mm256_set1_epi32(1 << 16), half = _mm256_set1_epi32(HALF);
    __m256i red = _mm256_setzero_si256(), green = red, blue = red;
    int col = 0;
    for (; col + 10 <= cols; col += 8) {
        const __m128i low = _mm_loadu_si128((const __m128i *)(rgb + 3 * col)), high = _mm_loadu_si128((const __m128i *)(rgb + 3 * col + 12));
        const __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        const __m256i a = _mm256_shuffle_epi8(pixels, rg), b = _mm256_shuffle_epi8(pixels, bg);
        __m256i luma = _mm256_add_epi32(_mm256_madd_epi16(a, weigh_rg), _mm256_madd_epi16(b, weigh_bg));
        luma = _mm256_srli_epi32(_mm256_add_epi32(luma, half), 16);
        _mm_storeu_si128((__m128i *)(y + col), _mm_packs_epi32(_mm256_castsi256_si128(luma), _mm256_extracti128_si256(luma, 1)));
        red = _mm256_add_epi32(red, _mm256_madd_epi16(a, first));
        green = _mm256_add_epi32(green, _mm256_madd_epi16(a, second));
        blue = _mm256_add_epi32(blue, _mm256_madd_epi16(b, first));
    }
    int32_t lanes[24];
    _mm256_storeu_si256((__m256i *)lanes, red);
    _mm256_storeu_si256((__m256i *)(lanes + 8), green);
    _mm256_storeu_si256((__m256i *)(lanes + 16), blue);
    for (int lane = 0; lane < 24; lane++)
        sums[lane / 8] += lanes[lane];
    luma_row(rgb, col, cols, y, sums);
}
#endif

/* rgb    : first byte of the tile; row_bytes apart lie its rows of cols pixels
 * found  : sums of red, green, blue over all pixels; sum and sum of squares of the 4-neighbour Laplacian over all but the outermost pixels
 * Returns 0, or 1 where there was no memory for three rows.
 */
int tile_sums(const uint8_t *rgb, int64_t row_bytes, int rows, int cols, int64_t found[5])
{
    int16_t *lines = malloc(3 * sizeof(int16_t) * (size_t)cols);
    if (lines == NULL)
        return 1;
    for (int place = 0; place < 5; place++)
        found[place] = 0;
#if defined(__x86_64__)
    const int fast = __builtin_cpu_supports("avx2");
#endif
    for (int row = 0; row < rows; row++) {
        int16_t *y = lines + (size_t)(row % 3) * cols;
#if defined(__x86_64__)
        if (fast)
            luma_row_avx2(rgb + row * row_bytes, cols, y, found);
        else
#endif
            luma_row(rgb + row * row_bytes, 0, cols, y, found);
        if (row < 2)
            continue;
        const int16_t *up = lines + (size_t)((row - 2) % 3) * cols, *middle = lines + (size_t)((row - 1) % 3) * cols;
#if defined(__x86_64__)
        if (fast)
            laplacian_avx2(up, middle, y, cols, found + 3, found + 4);
        else
#endif
            laplacian_plain(up, middle, y, cols, found + 3, found + 4);
    }
    free(lines);
    return 0;
}

static inline __attribute__((always_inline)) void short_plain(const int16_t *v, int64_t n, int flip, int low, int high, int64_t found[5])
{
    int64_t count = 0, sum = 0, squares = 0;
    int least = INT16_MAX, most = INT16_MIN;
    for (int64_t at = 0; at < n; at++) {
        const int x = flip ? (int16_t)(v[at] ^ 0x8000) : v[at];
        if (x >= low && x <= high)
            continue;
        count++, sum += x, squares += (int64_t)x * x;
        least = x < least ? x : least, most = x > most ? x : most;
    }
    found[0] += count, found[3] += sum, found[4] += squares;
    found[1] = least < found[1] ? least : found[1], found[2] = most > found[2] ? most : found[2];
}

#if defined(__x86_64__)
AVX2 static int64_t short_avx2(const int16_t *v, int64_t n, int flip, int low, int high, int64_t found[5])
{
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi16(1), turn = _mm256_set1_epi16(flip ? INT16_MIN : 0);
    const __m256i from = _mm256_set1_epi16((int16_t)low), to = _mm256_set1_epi16((int16_t)high);
    __m256i least = _mm256_set1_epi16(INT16_MAX), most = _mm256_set1_epi16(INT16_MIN), squares = zero, sum = zero, count = zero;
    int64_t at = 0;
    for (; at + 16 <= n; at += 16) {
        const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(v + at)), turn);
        const __m256i kept = _mm256_or_si256(_mm256_cmpgt_epi16(from, x), _mm256_cmpgt_epi16(x, to)); /* all ones where x is no padding */
        const __m256i y = _mm256_and_si256(x, kept);
        const __m256i square = _mm256_madd_epi16(y, y); /* up to 2^31: right as unsigned */
        squares = _mm256_add_epi64(squares, _mm256_add_epi64(_mm256_unpacklo_epi32(square, zero), _mm256_unpackhi_epi32(square, zero)));
        /* pairs as int32; their sign is spread before they are added as int64 */
        const __m256i pairs = _mm256_madd_epi16(y, one), sign = _mm256_srai_epi32(pairs, 31);
        sum = _mm256_add_epi64(sum, _mm256_add_epi64(_mm256_unpacklo_epi32(pairs, sign), _mm256_unpackhi_epi32(pairs, sign)));
        count = _mm256_sub_epi32(count, _mm256_madd_epi16(kept, one)); /* all ones is -1 */
        least = _mm256_min_epi16(least, _mm256_blendv_epi8(_mm256_set1_epi16(INT16_MAX), x, kept));
        most = _mm256_max_epi16(most, _mm256_blendv_epi8(_mm256_set1_epi16(INT16_MIN), x, kept));
    }
    int16_t smallest[16], largest[16];
    int32_t counts[8];
    int64_t totals[4], squared[4];
    _mm256_storeu_si256((__m256i *)smallest, least);
    _mm256_storeu_si256((__m256i *)largest, most);
    _mm256_storeu_si256((__m256i *)counts, count);
    _mm256_storeu_si256((__m256i *)totals, sum);
    _mm256_storeu_si256((__m256i *)squared, squares);
    for (int lane = 0; lane < 16; lane++) {
        found[1] = smallest[lane] < found[1] ? smallest[lane] : found[1];
        found[2] = largest[lane] > found[2] ? largest[lane] : found[2];
    }
    for (int lane = 0; lane < 8; lane++)
        found[0] += counts[lane];
    for (int lane = 0; lane < 4; lane++)
        found[3] += totals[lane], found[4] += squared[lane];
    return at;
}
#endif

/* v        : n values of 16 bits; flip: they are unsigned, and all that is said of them is said of value - 32768
 * low, high: what lies between them, both included, is left out (low > high: nothing is); both within int16
 * found    : how many are left, the least and the most of them (32767 and -32768 where none is left), their sum, the sum of their squares
 */
void short_sums(const int16_t *v, int64_t n, int flip, int low, int high, int64_t found[5])
{
    int64_t done = 0;
    found[0] = found[3] = found[4] = 0, found[1] = INT16_MAX, found[2] = INT16_MIN;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        while (n - done >= 16) { /* in pieces, so that the counts of a lane stay below 2^31 */
            const int64_t piece = n - done < 1 << 24 ? n - done : 1 << 24;
            done += short_avx2(v + done, piece, flip, low, high, found);
        }
#endif
    short_plain(v + done, n - done, flip, low, high, found);
}
