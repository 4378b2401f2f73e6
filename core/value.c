/* value.c: owns how text is read, so that a number, an address or a URL means the same in every
 * setting. What a setting takes, and who said it, is config's. */
#include "value.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define URL_SHAPE "^http://(\\[([0-9A-Fa-f:.]{2,45})]|([A-Za-z0-9._-]{1,253}))(:([0-9]{1,5}))?/?$"
enum { URL_V6 = 2, URL_HOST = 3, URL_PORT = 5, URL_GROUPS }; /* its parts */

/* What is wrong with an instance's URL: the first of these that it looks like. */
static const struct {
    const char *shape, *wrong;
} bad_urls[] = {
    {"^[Hh][Tt][Tt][Pp][Ss]:", "TLS to instances is not supported yet: expected http://host:port"},
    {"@", "expected http://host:port without a user or password"},
    {"^http://[^/?#]*([?#]|/.)", "expected http://host:port without a path or query"},
    {"^http://[^/[]*:.*:", "expected http://host:port, an IPv6 address in [brackets]"},
    {"^http://(\\[[0-9A-Fa-f:.]+]|[A-Za-z0-9._-]+):[0-9]+/?$",
     "expected a port between 1 and 65535"},
};

bool value_fits(const char *shape, const char *text)
{
    regex_t re;
    must(regcomp(&re, shape, REG_EXTENDED | REG_NOSUB) == 0);
    bool ok = regexec(&re, text, 0, NULL, 0) == 0;
    regfree(&re);
    return ok;
}

/* ---- types ----------------------------------------------------------------------------------- */

const struct value_words value_types[] = {
    [VALUE_INT] = {"number", "a whole number", .numbers = true},
    [VALUE_SECONDS] = {"seconds", "seconds", .numbers = true, .texts = true},
    [VALUE_BYTES] = {"bytes", "bytes", .numbers = true, .texts = true},
    [VALUE_BOOL] = {"true|false", "true or false", .booleans = true},
    [VALUE_TEXT] = {"text", "text", .texts = true},
    [VALUE_SECRET] = {"text, secret", "text", .texts = true},
};

bool value_read_number(const char *text, enum value_type type, double *out)
{
    static const struct {
        enum value_type type;
        const char *unit;
        double factor;
    } units[] = {{VALUE_SECONDS, "s", 1},
                 {VALUE_SECONDS, "ms", 0.001},
                 {VALUE_BYTES, "k", 1024},
                 {VALUE_BYTES, "m", 1 << 20},
                 {VALUE_BYTES, "g", 1 << 30}};
    size_t n = strspn(text, type == VALUE_SECONDS ? "0123456789." : "0123456789");
    char *end;
    if (n == 0 || n > 15 || *text == '.')
        return false;
    *out = strtod(text, &end);
    if (end != text + n || !*end) /* "0x5" and "1e5" end elsewhere */
        return end == text + n;
    for (unsigned i = 0; i < COUNT_OF(units); i++)
        if (units[i].type == type && strcasecmp(end, units[i].unit) == 0) {
            *out *= units[i].factor;
            return true;
        }
    return false;
}

bool value_read_bool(const char *text, bool *out)
{
    *out = value_fits("^(true|True|TRUE|1|yes|on)$", text);
    return *out || value_fits("^(false|False|FALSE|0|no|off)$", text);
}

bool value_store(enum value_type type, void *field, const char *text, double least, double most)
{
    bool yes;
    double d;
    if (type == VALUE_TEXT || type == VALUE_SECRET) {
        free(*(char **)field);
        *(char **)field = base_strdup(text);
    } else if (type == VALUE_BOOL) {
        if (!value_read_bool(text, &yes))
            return false;
        *(bool *)field = yes;
    } else {
        if (!value_read_number(text, type, &d) || d < least || d > most)
            return false;
        if (type == VALUE_SECONDS)
            *(double *)field = d;
        else
            *(long *)field = (long)d;
    }
    return true;
}

const char *value_spell(enum value_type type, const void *field, char out[VALUE_SPELLED_MAX])
{
    if (type == VALUE_TEXT || type == VALUE_SECRET)
        return *(char *const *)field;
    if (type == VALUE_BOOL)
        return *(const bool *)field ? "true" : "false";
    if (type == VALUE_SECONDS)
        snprintf(out, VALUE_SPELLED_MAX, "%.15g", *(const double *)field);
    else
        snprintf(out, VALUE_SPELLED_MAX, "%ld", *(const long *)field);
    return out;
}

/* ---- addresses ------------------------------------------------------------------------------- */

/* IPv4 becomes its mapped IPv6 address (RFC 4291 2.5.5.2), so that all compare alike. */
static bool read_address(const char *text, struct in6_addr *out)
{
    *out = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff}};
    return inet_pton(AF_INET, text, &out->s6_addr[12]) == 1 || inet_pton(AF_INET6, text, out) == 1;
}

static bool is_wildcard(const struct in6_addr *a)
{
    static const unsigned char none[4];
    return IN6_IS_ADDR_UNSPECIFIED(a) ||
           (IN6_IS_ADDR_V4MAPPED(a) && memcmp(&a->s6_addr[12], none, sizeof none) == 0);
}

static bool is_loopback(const struct in6_addr *a)
{
    return IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
}

bool value_is_address(const char *text)
{
    struct in6_addr a;
    return read_address(text, &a);
}

/* address, IPv4:port or [IPv6]:port; ends the text where the port begins. */
static bool is_server(char *text)
{
    struct in6_addr a;
    bool bracket = *text == '[';
    char *end = bracket ? strstr(text, "]:") : strchr(text, ':');
    if (!bracket && (!end || strchr(end + 1, ':')))
        return value_is_address(text);
    if (!end)
        return false;
    const char *port = end + (bracket ? 2 : 1);
    *end = 0;
    return inet_pton(bracket ? AF_INET6 : AF_INET, text + bracket, &a) == 1 &&
           value_fits("^[0-9]{1,5}$", port) && atoi(port) >= 1 && atoi(port) <= 65535;
}

bool value_is_address_list(const char *text)
{
    char *copy = base_strdup(text), *rest = copy, *one;
    bool ok = true;
    while (ok && (one = strsep(&rest, ",")))
        ok = is_server(one);
    free(copy);
    return ok;
}

bool value_leads_to(const char *host, const char *listening)
{
    static const struct in6_addr v4 = {.s6_addr = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
    struct in6_addr to, at;
    if (!read_address(listening, &at))
        return false;
    bool literal = read_address(host, &to);
    /* To connect to a wildcard is to connect to this machine. */
    if (literal ? is_wildcard(&to) : value_fits("^[Ll][Oo][Cc][Aa][Ll][Hh][Oo][Ss][Tt][.]?$", host))
        return is_wildcard(&at) || IN6_IS_ADDR_LOOPBACK(&at) || IN6_ARE_ADDR_EQUAL(&at, &v4);
    return literal && (IN6_ARE_ADDR_EQUAL(&to, &at) || (is_wildcard(&at) && is_loopback(&to)));
}

const char *value_read_url(const char *url, char **host, int *port)
{
    regex_t re;
    regmatch_t at[URL_GROUPS];
    must(regcomp(&re, URL_SHAPE, REG_EXTENDED) == 0);
    bool ok = regexec(&re, url, COUNT_OF(at), at, 0) == 0;
    regfree(&re);
    *port = ok && at[URL_PORT].rm_so >= 0 ? atoi(url + at[URL_PORT].rm_so) : 8000; /* Chroma's */
    ok = ok && *port >= 1 && *port <= 65535;
    for (unsigned i = 0; !ok && i < COUNT_OF(bad_urls); i++)
        if (value_fits(bad_urls[i].shape, url))
            return bad_urls[i].wrong;
    if (!ok)
        return "expected http://host:port";
    bool v6 = at[URL_V6].rm_so >= 0;
    regmatch_t *part = &at[v6 ? URL_V6 : URL_HOST];
    char *name = base_printf("%.*s", (int)(part->rm_eo - part->rm_so), url + part->rm_so);
    struct in6_addr in6;
    if (v6 && inet_pton(AF_INET6, name, &in6) != 1) {
        free(name);
        return "expected an IPv6 address in the brackets";
    }
    if (v6) { /* one spelling, so that equal ones are seen */
        name = base_realloc(name, INET6_ADDRSTRLEN);
        must(inet_ntop(AF_INET6, &in6, name, INET6_ADDRSTRLEN));
    }
    *host = name;
    return NULL;
}

/* ---- words ----------------------------------------------------------------------------------- */

unsigned value_distance(const char *a, const char *b)
{
    enum { LONGEST = 48 };
    size_t n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST)
        return LONGEST;
    unsigned row[LONGEST + 1];
    for (unsigned j = 0; j <= m; j++)
        row[j] = j;
    for (unsigned i = 1; i <= n; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= m; j++) {
            bool same = toupper((unsigned char)a[i - 1]) == toupper((unsigned char)b[j - 1]);
            unsigned change = diagonal + !same;
            diagonal = row[j];
            unsigned less = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            row[j] = change < less ? change : less;
        }
    }
    return row[m];
}

char *value_next_piece(char **rest, const char *by)
{
    char *piece = strsep(rest, by);
    piece += strspn(piece, " \t");
    for (size_t n = strlen(piece); n > 0 && strchr(" \t", piece[n - 1]); n--)
        piece[n - 1] = 0;
    return piece;
}

const char *value_show(const char *text, bool quoted, char out[VALUE_SHOWN_MAX])
{
    const char *quote = quoted ? "\"" : "", *slashes = strstr(text, "://");
    size_t n = slashes && strchr(slashes, '@') ? (size_t)(slashes - text) + 3 : strlen(text);
    const char *rest = text[n] ? "***" : "";
    if (n > VALUE_SHOWN_MAX - 10) {
        n = VALUE_SHOWN_MAX - 10;
        rest = "...";
    }
    snprintf(out, VALUE_SHOWN_MAX, "%s%.*s%s%s", quote, (int)n, text, rest, quote);
    for (char *p = out; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    return out;
}
