/* kernel.c: the formats are those of proc(5), Documentation/admin-guide/cgroup-v{1,2} and
 * Documentation/networking/proc_net_tcp of the kernel. */
#include "kernel.h"

/* ---- lines, words, numbers ---- */

bool kernel_line(struct str *rest, struct str *line)
{
    if (rest->n == 0)
        return false;
    const char *end = memchr(rest->p, '\n', rest->n);
    line->p = rest->p;
    line->n = end ? (size_t)(end - rest->p) : rest->n;
    size_t used = line->n + (end ? 1 : 0);
    rest->p += used;
    rest->n -= used;
    return true;
}

static bool blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n';
}

bool kernel_word(struct str *rest, struct str *word)
{
    while (rest->n && blank(*rest->p))
        rest->p++, rest->n--;
    word->p = rest->p;
    while (rest->n && !blank(*rest->p))
        rest->p++, rest->n--;
    word->n = (size_t)(rest->p - word->p);
    return word->n > 0;
}

bool kernel_uint(struct str text, uint64_t *out)
{
    uint64_t n = 0;
    if (text.n == 0)
        return false;
    for (size_t i = 0; i < text.n; i++) {
        unsigned digit = (unsigned)(text.p[i] - '0');
        if (digit > 9 || n > (UINT64_MAX - digit) / 10)
            return false;
        n = n * 10 + digit;
    }
    *out = n;
    return true;
}

static bool hex(struct str text, uint64_t *out)
{
    uint64_t n = 0;
    if (text.n == 0 || text.n > 16)
        return false;
    for (size_t i = 0; i < text.n; i++) {
        static const char digits[] = "0123456789abcdef";
        char c = text.p[i];
        const char *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c) : NULL;
        if (!at)
            return false;
        n = n << 4 | (uint64_t)(at - digits);
    }
    *out = n;
    return true;
}

/* The nth word from here on, counted from 1, as a number; *rest stands behind it then. */
static bool nth(struct str *rest, unsigned n, uint64_t *out)
{
    struct str word;
    while (n-- > 0)
        if (!kernel_word(rest, &word))
            return false;
    return kernel_uint(word, out);
}

/* ---- processes ---- */

bool kernel_stat(struct str text, uint64_t *used, uint64_t *started)
{
    uint64_t user, system, start;
    size_t n = text.n;
    while (n > 0 && text.p[n - 1] != ')') /* the name in brackets may hold anything, ")" too */
        n--;
    struct str rest = {text.p + n, text.n - n};
    if (n == 0 || !nth(&rest, 12, &user) || !nth(&rest, 1, &system) || !nth(&rest, 7, &start))
        return false;
    *used = user + system;
    *started = start;
    return true;
}

bool kernel_statm(struct str text, uint64_t *resident, uint64_t *shared)
{
    uint64_t r, s;
    if (!nth(&text, 2, &r) || !nth(&text, 1, &s))
        return false;
    *resident = r;
    *shared = s < r ? s : r;
    return true;
}

bool kernel_field(struct str text, const char *key, struct str *rest)
{
    struct str line;
    size_t n = strlen(key);
    while (kernel_line(&text, &line)) {
        if (line.n <= n || memcmp(line.p, key, n) != 0)
            continue;
        size_t skip = n + (line.p[n] == ':');
        if (skip < line.n && blank(line.p[skip])) {
            *rest = (struct str){line.p + skip, line.n - skip};
            return true;
        }
    }
    return false;
}

bool kernel_figure(struct str text, const char *key, uint64_t *out)
{
    struct str rest;
    return kernel_field(text, key, &rest) && nth(&rest, 1, out);
}

unsigned kernel_list(struct str text)
{
    uint64_t count = 0;
    struct str word;
    if (!kernel_word(&text, &word))
        return 0;
    while (word.n) {
        const char *comma = memchr(word.p, ',', word.n);
        struct str piece = {word.p, comma ? (size_t)(comma - word.p) : word.n};
        const char *dash = memchr(piece.p, '-', piece.n);
        struct str low = {piece.p, dash ? (size_t)(dash - piece.p) : piece.n};
        struct str high = dash ? (struct str){dash + 1, piece.n - low.n - 1} : low;
        uint64_t from, to;
        if (!kernel_uint(low, &from) || !kernel_uint(high, &to) || to < from || to > 1u << 20)
            return 0;
        count += to - from + 1;
        size_t used = piece.n + (comma ? 1 : 0);
        word.p += used;
        word.n -= used;
    }
    return count > 1u << 20 ? 0 : (unsigned)count;
}

/* ---- control groups ---- */

bool kernel_limit(struct str text, int64_t *out)
{
    struct str word;
    uint64_t n;
    if (!kernel_word(&text, &word))
        return false;
    if (str_eq(word, STR("max")) || str_eq(word, STR("-1")))
        *out = KERNEL_NONE;
    else if (!kernel_uint(word, &n))
        return false;
    else
        *out = n > INT64_MAX ? KERNEL_NONE : (int64_t)n;
    return true;
}

bool kernel_cpu_max(struct str text, double *cores)
{
    struct str word;
    int64_t quota, period;
    if (!kernel_word(&text, &word) || !kernel_limit(word, &quota) || !kernel_limit(text, &period) ||
        period <= 0 || period == KERNEL_NONE)
        return false;
    *cores = quota == KERNEL_NONE ? 0 : (double)quota / (double)period;
    return true;
}

bool kernel_among(struct str words, const char *word)
{
    struct str wanted = str_from(word);
    while (words.n) {
        const char *comma = memchr(words.p, ',', words.n);
        struct str piece = {words.p, comma ? (size_t)(comma - words.p) : words.n};
        if (str_eq(piece, wanted))
            return true;
        size_t used = piece.n + (comma ? 1 : 0);
        words.p += used;
        words.n -= used;
    }
    return false;
}

/* "4:memory:/a/b": cuts what stands before the next colon off *rest. */
static bool before_colon(struct str *rest, struct str *part)
{
    const char *colon = rest->n ? memchr(rest->p, ':', rest->n) : NULL;
    if (!colon)
        return false;
    *part = (struct str){rest->p, (size_t)(colon - rest->p)};
    rest->n -= part->n + 1;
    rest->p = colon + 1;
    return true;
}

bool kernel_cgroup(struct str text, const char *controller, struct str *path, bool *v2)
{
    struct str line, id, controllers;
    bool found = false;
    while (kernel_line(&text, &line)) {
        if (!before_colon(&line, &id) || !before_colon(&line, &controllers) || line.n == 0 ||
            line.p[0] != '/')
            continue;
        bool named = kernel_among(controllers, controller);
        if (!named && !(str_eq(id, STR("0")) && controllers.n == 0))
            continue;
        *path = line;
        *v2 = !named;
        found = true;
        if (named)
            break;
    }
    return found;
}

/* "\040" is a blank: blanks, tabs, line ends and back-slashes of a path come in octal digits. */
static bool decode_path(struct str word, char out[KERNEL_PATH_MAX])
{
    size_t n = 0;
    for (size_t i = 0; i < word.n; i++) {
        unsigned c = (unsigned char)word.p[i];
        if (c == '\\') {
            c = 0;
            for (unsigned k = 1; k <= 3; k++) {
                if (i + k >= word.n || word.p[i + k] < '0' || word.p[i + k] > '7')
                    return false;
                c = c * 8 + (unsigned)(word.p[i + k] - '0');
            }
            i += 3;
        }
        if (c == 0 || c > 255 || n + 1 >= KERNEL_PATH_MAX)
            return false;
        out[n++] = (char)c;
    }
    out[n] = 0;
    return n > 0 && out[0] == '/';
}

bool kernel_mount(struct str line, struct kernel_mount *out)
{
    struct str word, root, point, source;
    for (unsigned i = 0; i < 3; i++)
        if (!kernel_word(&line, &word))
            return false;
    if (!kernel_word(&line, &root) || !kernel_word(&line, &point))
        return false;
    do /* options, and optional fields up to the dash */
        if (!kernel_word(&line, &word))
            return false;
    while (!str_eq(word, STR("-")));
    return kernel_word(&line, &out->type) && kernel_word(&line, &source) &&
           kernel_word(&line, &out->options) && decode_path(root, out->root) &&
           decode_path(point, out->point);
}

/* ---- sockets ---- */

/* Words of eight hex digits, each as the machine holds four bytes of the address. */
static bool read_address(struct str text, uint8_t out[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (text.n != 8 && text.n != 32)
        return false;
    uint8_t *at = out + 16 - text.n / 2;
    if (text.n == 8)
        memcpy(out, mapped, sizeof mapped);
    for (size_t i = 0; i < text.n; i += 8, at += 4) {
        uint64_t word;
        if (!hex((struct str){text.p + i, 8}, &word))
            return false;
        uint32_t bytes = (uint32_t)word;
        memcpy(at, &bytes, sizeof bytes);
    }
    return true;
}

bool kernel_listener(struct str line, struct kernel_socket *out)
{
    struct kernel_socket s;
    struct str word, address, state;
    uint64_t port;
    if (!kernel_word(&line, &word) || !kernel_word(&line, &word) ||
        !before_colon(&word, &address) || !hex(word, &port) || port > 65535 ||
        !read_address(address, s.address))
        return false;
    if (!kernel_word(&line, &word) || !kernel_word(&line, &state) || !str_eq(state, STR("0A")))
        return false;
    /* queues, timer, retransmits, user, timeout, inode */
    if (!nth(&line, 6, &s.inode) || s.inode == 0)
        return false;
    s.port = (unsigned)port;
    *out = s;
    return true;
}
