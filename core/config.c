/* config.c: owns the meaning of every setting: what may be said, what it becomes, what is wrong
 * with it. The SETTINGS list is the one table; instances are drafted here too, whichever of their
 * three sources names them. */
#include "config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

enum type { INT, SECONDS, BYTES, BOOL, TEXT, SECRET };

static const struct setting {
    const char *name, *def;
    enum type type;
    size_t offset;
    double least, most;
    bool reloadable;
    const char *doc;
} settings[] = {
#define ROW(f, NAME, type, def, lo, hi, reload, doc)                                               \
    {#NAME, def, type, offsetof(struct config, f), lo, hi, reload, doc},
    SETTINGS(ROW)
#undef ROW
};

enum {
#define ROW(f, NAME, type, def, lo, hi, reload, doc) AT_##f,
    SETTINGS(ROW)
#undef ROW
        SETTING_COUNT
};

/* Text settings that know only certain words. */
static const struct {
    unsigned at;
    const char *words; /* with a | between, before and after */
} closed[] = {{AT_unreplicated_reads, "|primary|any|"},
              {AT_log_format, "|kv|json|"},
              {AT_log_level, "|debug|info|warn|error|"}};

#define ENVIRONMENT "environment"
#define PREFIX      "CHROMUX_"
#define ERROR_MAX   600
#define SHOWN_MAX   160 /* bytes of a value that an error line repeats */

/* One check: the config that grows, what was wrong so far, and who set what. */
struct check {
    struct config *c;
    struct buf *errors;
    unsigned mistakes;
    const struct config_raw *from[SETTING_COUNT]; /* the last to set it; NULL: the default */
    /* Beside c->instance[]: which row of which source it came from. */
    struct origin {
        const char *what, *source;
        unsigned row; /* counts from 1; 0: the source has no rows */
        bool role_given, bad;
    } origin[CONFIG_INSTANCES_MAX];
    bool too_many;
};

/* ---- raws --------------------------------------------------------------------------------------
 */

void config_raws_add(struct config_raws *r, const char *name, const char *text,
                     enum config_kind kind, const char *source)
{
    if (r->n == r->room) {
        r->room = r->room ? 2 * r->room : 32;
        r->v = base_realloc(r->v, r->room * sizeof *r->v);
    }
    r->v[r->n++] =
        (struct config_raw){base_strdup(name), base_strdup(text), kind, base_strdup(source)};
}

void config_raws_fini(struct config_raws *r)
{
    for (unsigned i = 0; i < r->n; i++) {
        free(r->v[i].name);
        free(r->v[i].text);
        free(r->v[i].source);
    }
    free(r->v);
    *r = (struct config_raws){0};
}

static const struct setting *find_setting(const char *name)
{
    for (unsigned i = 0; i < SETTING_COUNT; i++)
        if (strcmp(settings[i].name, name) == 0)
            return &settings[i];
    return NULL;
}

void config_raws_add_environment(struct config_raws *r, char **environment)
{
    for (; *environment; environment++) {
        const char *equals = strchr(*environment, '=');
        if (!equals || !equals[1])
            continue;
        char *name = base_printf("%.*s", (int)(equals - *environment), *environment);
        if (find_setting(name) || strncmp(name, PREFIX, strlen(PREFIX)) == 0)
            config_raws_add(r, name, equals + 1, CONFIG_TEXT, ENVIRONMENT);
        free(name);
    }
}

static bool from_environment(const struct config_raw *r)
{
    return strcmp(r->source, ENVIRONMENT) == 0;
}

/* The file knows types; text of the environment and of --set is read as whatever is wanted. */
static bool from_file(const struct config_raw *r)
{
    return !from_environment(r) && strcmp(r->source, "--set") != 0;
}

/* ---- telling mistakes --------------------------------------------------------------------------
 */

static void complain(struct check *k, const char *fmt, ...) PRINTF(2, 3);
static void complain(struct check *k, const char *fmt, ...)
{
    char line[ERROR_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    k->mistakes++;
    /* Values come from outside and may be many: what passes the cap is left out. */
    (void)!buf_addf(k->errors, "%s\n", line);
}

/* A user and password in a URL (RFC 3986 3.2.1) are a secret wherever they stand. */
static const char *skip_userinfo(const char *p)
{
    const char *last = NULL;
    for (const char *q = p; *q && *q != ';'; q++)
        if (*q == '@')
            last = q;
    return last ? last : p;
}

/* The value as an error line repeats it: text quoted, control bytes as ?, cut, secrets blanked. */
static const char *show(const struct config_raw *r, bool secret, char out[SHOWN_MAX])
{
    if (secret)
        return "***";
    size_t n = 0;
    bool quoted = r->kind == CONFIG_TEXT;
    if (quoted)
        out[n++] = '"';
    for (const char *p = r->text; *p; p++) {
        if (n > SHOWN_MAX - 12) {
            memcpy(out + n, "...", 3);
            n += 3;
            break;
        }
        out[n++] = (unsigned char)*p < ' ' || *p == 0x7f ? '?' : *p;
        if (*p == '/' && p > r->text && p[-1] == '/' && skip_userinfo(p + 1) != p + 1) {
            p = skip_userinfo(p + 1);
            memcpy(out + n, "***@", 4);
            n += 4;
        }
    }
    if (quoted)
        out[n++] = '"';
    out[n] = 0;
    return out;
}

static void complain_of(struct check *k, const struct config_raw *r, bool secret, const char *fmt,
                        ...) PRINTF(4, 5);
static void complain_of(struct check *k, const struct config_raw *r, bool secret, const char *fmt,
                        ...)
{
    char text[ERROR_MAX / 2], shown[SHOWN_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    complain(k, "%.80s = %s (%.120s): %s", r->name, show(r, secret, shown), r->source, text);
}

/* How many letters to insert, drop or change (Levenshtein), whatever their case. */
static unsigned distance(const char *a, const char *b)
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

static void complain_unknown(struct check *k, const struct config_raw *r)
{
    bool prefixed = from_environment(r) && strncmp(r->name, PREFIX, strlen(PREFIX)) == 0;
    const char *bare = prefixed ? r->name + strlen(PREFIX) : r->name, *nearest = NULL;
    unsigned least = 3;
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        unsigned d = distance(bare, settings[i].name);
        if (d < least) {
            least = d;
            nearest = settings[i].name;
        }
    }
    if (nearest)
        complain(k, "unknown setting %.80s (%.120s): did you mean %s%s?", r->name, r->source,
                 prefixed ? PREFIX : "", nearest);
    else
        complain(k, "unknown setting %.80s (%.120s): `chromux check --explain` lists all", r->name,
                 r->source);
}

/* ---- reading values ----------------------------------------------------------------------------
 */

static bool read_long(const char *text, long *out)
{
    if (!isdigit((unsigned char)text[text[0] == '-']))
        return false;
    char *end;
    errno = 0;
    *out = strtol(text, &end, 10);
    return !*end && !errno;
}

/* "5", "0.5", "5s", "200ms" */
static bool read_seconds(const char *text, double *out)
{
    size_t digits = strspn(text, "0123456789.");
    const char *unit = text + digits;
    char *end;
    if (digits == 0 || digits > 30 || !isdigit((unsigned char)text[0]))
        return false;
    *out = strtod(text, &end);
    if (end != unit)
        return false;
    if (strcmp(unit, "ms") == 0)
        *out /= 1000;
    return !*unit || strcmp(unit, "s") == 0 || strcmp(unit, "ms") == 0;
}

/* "1024", "32k", "8m", "1g" */
static bool read_bytes(const char *text, long *out)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 15)
        return false;
    *out = strtol(text, NULL, 10);
    const char *unit = text + digits;
    if (!*unit)
        return true;
    const char *at = strchr("kmg", tolower((unsigned char)*unit));
    if (!at || unit[1] || digits > 9)
        return false;
    *out <<= 10 * (at - "kmg" + 1);
    return true;
}

static bool read_bool(const char *text, bool *out)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};
    for (unsigned i = 0; i < COUNT_OF(words); i++)
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2;
            return true;
        }
    return false;
}

static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = words; (p = strchr(p, '|')); p++)
        if (strncmp(p + 1, word, n) == 0 && p[1 + n] == '|')
            return n > 0;
    return false;
}

/* "|a|b|" as "a or b" */
static const char *spell_words(const char *words, char out[80])
{
    size_t n = 0;
    for (const char *p = words + 1; *p && n < 60; p++) {
        bool last = *p == '|' && !strchr(p + 1, '|');
        if (*p != '|')
            out[n++] = *p;
        else if (!last)
            n +=
                (size_t)sprintf(out + n, "%s", strchr(strchr(p + 1, '|') + 1, '|') ? ", " : " or ");
    }
    out[n] = 0;
    return out;
}

/* ---- settings ----------------------------------------------------------------------------------
 */

static void *field_of(const struct config *c, const struct setting *s)
{
    return (char *)c + s->offset;
}

static const char *words_of(const struct setting *s)
{
    for (unsigned i = 0; i < COUNT_OF(closed); i++)
        if (&settings[closed[i].at] == s)
            return closed[i].words;
    return NULL;
}

static bool is_text(const struct setting *s)
{
    return s->type == TEXT || s->type == SECRET;
}

static bool is_loopback_http(const char *url)
{
    static const char *const hosts[] = {"127.0.0.1", "localhost", "[::1]"};
    if (strncasecmp(url, "http://", 7) != 0)
        return false;
    for (unsigned i = 0; i < COUNT_OF(hosts); i++) {
        size_t n = strlen(hosts[i]);
        if (strncasecmp(url + 7, hosts[i], n) == 0 && (!url[7 + n] || strchr(":/", url[7 + n])))
            return true;
    }
    return false;
}

static bool text_fits(const struct setting *s, const char *text)
{
    const char *words = words_of(s);
    long port;
    if (words)
        return has_word(words, text);
    if (s == &settings[AT_admin_port])
        return !*text || (read_long(text, &port) && port >= 0 && port <= 65535);
    if (s == &settings[AT_slack_webhook_url])
        return !*text || strncasecmp(text, "https://", 8) == 0 || is_loopback_http(text);
    for (const char *p = text; *p && s->type == TEXT; p++)
        if ((unsigned char)*p < ' ')
            return false;
    return *text || !*s->def;
}

static void expectation(const struct setting *s, char out[160])
{
    const char *words = words_of(s);
    char spelled[80];
    if (words)
        snprintf(out, 160, "%s", spell_words(words, spelled));
    else if (s == &settings[AT_admin_port])
        snprintf(out, 160, "a port between 0 and 65535, or nothing");
    else if (s == &settings[AT_slack_webhook_url])
        snprintf(out, 160, "https://…, or http:// to this machine");
    else if (s->type == INT)
        snprintf(out, 160, "a whole number between %.0f and %.0f", s->least, s->most);
    else if (s->type == SECONDS)
        snprintf(out, 160, "seconds between %g and %g", s->least, s->most);
    else if (s->type == BYTES)
        snprintf(out, 160, "bytes between %.0f and %.0f", s->least, s->most);
    else if (s->type == BOOL)
        snprintf(out, 160, "true or false");
    else
        snprintf(out, 160, *s->def ? "text that is not empty" : "text");
}

/* Reads text into the setting's field; false when it is not what the setting takes. */
static bool store(struct config *c, const struct setting *s, const char *text)
{
    void *field = field_of(c, s);
    long l;
    double d;
    switch (s->type) {
    case INT:
    case BYTES:
        if (!(s->type == INT ? read_long(text, &l) : read_bytes(text, &l)) ||
            (double)l < s->least || (double)l > s->most)
            return false;
        *(long *)field = l;
        return true;
    case SECONDS:
        if (!read_seconds(text, &d) || d < s->least || d > s->most)
            return false;
        *(double *)field = d;
        return true;
    case BOOL:
        return read_bool(text, field);
    case TEXT:
    case SECRET:
        if (!text_fits(s, text))
            return false;
        free(*(char **)field);
        *(char **)field = base_strdup(text);
        return true;
    }
    return false;
}

static bool kind_fits(const struct config_raw *r, enum type t)
{
    if (!from_file(r))
        return true;
    switch (t) {
    case INT:
        return r->kind == CONFIG_NUMBER;
    case SECONDS:
    case BYTES:
        return r->kind != CONFIG_BOOLEAN; /* text for its unit: "200ms", "32k" */
    case BOOL:
        return r->kind == CONFIG_BOOLEAN;
    case TEXT:
    case SECRET:
        return r->kind == CONFIG_TEXT;
    }
    return false;
}

/* Names: exact; in the environment also with the prefix; in the file also in lower case. */
static const struct setting *setting_of(const struct config_raw *r)
{
    const struct setting *s = find_setting(r->name);
    if (!s && from_environment(r) && strncmp(r->name, PREFIX, strlen(PREFIX)) == 0)
        s = find_setting(r->name + strlen(PREFIX));
    for (unsigned i = 0; !s && from_file(r) && i < SETTING_COUNT; i++) {
        const char *p = r->name;
        if (strcasecmp(p, settings[i].name) != 0)
            continue;
        while (*p && !isupper((unsigned char)*p))
            p++;
        s = *p ? NULL : &settings[i];
        break;
    }
    return s;
}

static void take_setting(struct check *k, const struct config_raw *r)
{
    const struct setting *s = setting_of(r);
    if (!s) {
        complain_unknown(k, r);
        return;
    }
    unsigned at = (unsigned)(s - settings);
    const struct config_raw *before = k->from[at];
    if (before && strcmp(before->source, r->source) == 0 && strcmp(before->name, r->name) != 0 &&
        (strcmp(before->text, r->text) != 0 || before->kind != r->kind)) {
        complain_of(k, r, s->type == SECRET, "expected the same value as %s gives", before->name);
        return;
    }
    char expected[160];
    bool kind =
        kind_fits(r, s->type) || (s == &settings[AT_admin_port] && r->kind == CONFIG_NUMBER);
    if (kind && store(k->c, s, r->text)) {
        k->from[at] = r;
        return;
    }
    expectation(s, expected);
    complain_of(k, r, s->type == SECRET, "expected %s%s", expected,
                !kind && s->type == INT && r->kind == CONFIG_TEXT ? ", without quotes" : "");
}

/* ---- instances ---------------------------------------------------------------------------------
 */

/* A new row; NULL when there are too many. */
static struct config_instance *draft(struct check *k, const char *what, unsigned row,
                                     const char *source)
{
    struct config *c = k->c;
    if (c->instance_count == CONFIG_INSTANCES_MAX) {
        if (!k->too_many)
            complain(k, "%s (%.120s): expected at most %d instances", what, source,
                     CONFIG_INSTANCES_MAX);
        k->too_many = true;
        return NULL;
    }
    struct config_instance *in = &c->instance[c->instance_count];
    *in = (struct config_instance){
        .priority = 100, .weight = 1, .maxconn = c->maxconn, .role = CONFIG_REPLICA};
    k->origin[c->instance_count++] = (struct origin){.what = what, .row = row, .source = source};
    return in;
}

static bool name_fits(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return n > 0 && n <= CONFIG_NAME_MAX && !name[n];
}

/* The host and port of http://host[:port][/]; answers what is wrong, or NULL. */
static const char *read_url(const char *url, char **host, int *port)
{
    static const char *const shape = "expected http://host:port";
    if (strncasecmp(url, "https://", 8) == 0)
        return "TLS to instances is not supported yet: expected http://host:port";
    if (strncasecmp(url, "http://", 7) != 0)
        return shape;
    const char *p = url + 7;
    if (strchr(p, '@'))
        return "expected http://host:port without a user or password";
    size_t n = strcspn(p, "/?#");
    if (p[n] && strcmp(p + n, "/") != 0)
        return "expected http://host:port without a path or query";
    size_t host_n = *p == '[' ? strcspn(p, "]") + 1 : strcspn(p, ":/?#");
    char name[254], address[INET6_ADDRSTRLEN];
    if (host_n > n || host_n >= sizeof name || host_n == 0)
        return shape;
    snprintf(name, sizeof name, "%.*s", (int)host_n, p);
    if (*p == '[') {
        struct in6_addr in6;
        name[host_n - 1] = 0;
        if (inet_pton(AF_INET6, name + 1, &in6) != 1)
            return "expected an IPv6 address in the brackets";
        must(inet_ntop(AF_INET6, &in6, address, sizeof address));
    } else if (strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") !=
               host_n) {
        return shape;
    }
    long number = 8000;
    if (host_n < n) {
        char digits[7];
        snprintf(digits, sizeof digits, "%.*s", (int)(n - host_n - 1), p + host_n + 1);
        if (p[host_n] != ':')
            return strchr(p, ':') && *p != '[' ? "expected IPv6 in brackets" : shape;
        if (!read_long(digits, &number) || number < 1 || number > 65535)
            return strchr(p + host_n + 1, ':') ? "expected http://host:port, IPv6 in brackets"
                                               : "expected a port between 1 and 65535";
    }
    *host = base_strdup(*p == '[' ? address : name);
    *port = (int)number;
    return NULL;
}

static void take_url(struct check *k, struct config_instance *in, const struct config_raw *r)
{
    free(in->url);
    free(in->host);
    in->url = base_strdup(r->text);
    in->host = NULL;
    const char *wrong = read_url(r->text, &in->host, &in->port);
    if (!wrong)
        return;
    k->origin[in - k->c->instance].bad = true;
    complain_of(k, r, false, "%s", wrong);
}

static void take_number(struct check *k, const struct config_raw *r, long *out, long least,
                        long most)
{
    long l;
    if (r->kind != CONFIG_NUMBER || !read_long(r->text, &l) || l < least || l > most)
        complain_of(k, r, false, "expected a whole number between %ld and %ld", least, most);
    else
        *out = l;
}

/* One field of one instance; r->name is for errors only. */
static void take_field(struct check *k, struct config_instance *in, const char *field,
                       const struct config_raw *r)
{
    bool text = r->kind == CONFIG_TEXT;
    if (strcmp(field, "priority") == 0) {
        take_number(k, r, &in->priority, 0, 1000000);
    } else if (strcmp(field, "weight") == 0) {
        take_number(k, r, &in->weight, 1, 1000);
    } else if (strcmp(field, "maxconn") == 0) {
        take_number(k, r, &in->maxconn, 1, 100000);
    } else if (strcmp(field, "role") == 0) {
        if (!text || !has_word("|primary|replica|", r->text)) {
            complain_of(k, r, false, "expected primary or replica");
            return;
        }
        in->role = *r->text == 'p' ? CONFIG_PRIMARY : CONFIG_REPLICA;
        k->origin[in - k->c->instance].role_given = true;
    } else if (strcmp(field, "name") == 0) {
        free(in->name);
        in->name = base_strdup(r->text);
        if (text && name_fits(r->text))
            return;
        k->origin[in - k->c->instance].bad = true;
        complain_of(k, r, false, "expected 1 to %d of A-Z a-z 0-9 . _ -", CONFIG_NAME_MAX);
    } else if (strcmp(field, "url") == 0) {
        take_url(k, in, r);
    } else {
        complain(k,
                 "unknown field %.80s (%.120s): expected name, url, priority, weight, maxconn "
                 "or role",
                 r->name, r->source);
    }
}

static bool is_row(const struct config_raw *r)
{
    return from_file(r) && strncmp(r->name, "instances", 9) == 0 &&
           !isalnum((unsigned char)r->name[9]);
}

/* "instances[2].url" of the file */
static void take_row(struct check *k, const struct config_raw *r)
{
    unsigned row = 0;
    int end = 0;
    if (sscanf(r->name, "instances[%5u].%n", &row, &end) != 1 || !end || !row) {
        complain_of(k, r, false, "expected instances = {{name = \"a\", url = \"http://…\"}, …}");
        return;
    }
    struct config_instance *in = NULL;
    for (unsigned i = 0; i < k->c->instance_count && !in; i++)
        if (k->origin[i].row == row)
            in = &k->c->instance[i];
    if (!in)
        in = draft(k, "instances", row, r->source);
    if (in)
        take_field(k, in, r->name + end, r);
}

/* Cuts the next piece before `by` off *rest, without the blanks around it. */
static char *next_piece(char **rest, const char *by)
{
    char *piece = strsep(rest, by);
    piece += strspn(piece, " \t");
    for (size_t n = strlen(piece); n > 0 && strchr(" \t", piece[n - 1]); n--)
        piece[n - 1] = 0;
    return piece;
}

/* CHROMA_INSTANCES: name=url[,key=value…];… */
static void take_list(struct check *k, const struct config_raw *from)
{
    char *copy = base_strdup(from->text), *rows = copy;
    for (unsigned row = 1; rows;) {
        char *fields = next_piece(&rows, ";");
        if (!*fields)
            continue;
        struct config_instance *in = draft(k, "CHROMA_INSTANCES", row, from->source);
        for (bool first = true; in && fields; first = false) {
            char *key = next_piece(&fields, ","), *value = strchr(key, '=');
            char what[64];
            if (value)
                *value++ = 0;
            snprintf(what, sizeof what, "CHROMA_INSTANCES[%u]%s%.30s", row,
                     first || !value ? "" : ".", first || !value ? "" : key);
            struct config_raw r = {what, value ? value : key, CONFIG_TEXT, from->source};
            if (!value) {
                k->origin[in - k->c->instance].bad = true;
                complain_of(k, &r, false, "expected %s", first ? "name=url" : "key=value");
                continue;
            }
            if (first) {
                struct config_raw name = {what, key, CONFIG_TEXT, from->source};
                take_field(k, in, "name", &name);
                take_field(k, in, "url", &r);
            } else if (strcmp(key, "name") == 0 || strcmp(key, "url") == 0) {
                complain_of(k, &r, false, "expected %s only once, as name=url", key);
            } else {
                r.kind = strcmp(key, "role") == 0 ? CONFIG_TEXT : CONFIG_NUMBER;
                take_field(k, in, key, &r);
            }
        }
        row++;
    }
    free(copy);
}

static void take_pair(struct check *k, unsigned at, const char *name, long priority,
                      enum config_role role)
{
    const struct config_raw *r = k->from[at];
    if (!r || !*r->text)
        return;
    struct config_instance *in = draft(k, settings[at].name, 0, r->source);
    if (!in)
        return;
    in->name = base_strdup(name);
    in->priority = priority;
    in->role = role;
    k->origin[in - k->c->instance].role_given = true;
    take_url(k, in, r);
}

static void complain_of_row(struct check *k, unsigned i, const char *text, const char *other)
{
    const struct origin *o = &k->origin[i];
    char row[16] = "";
    if (o->row)
        snprintf(row, sizeof row, "[%u]", o->row);
    complain(k, "%s%s (%.120s): %s%s", o->what, row, o->source, text, other);
}

/* What must hold among instances: names and addresses differ, and exactly one is the primary. */
static void check_instances(struct check *k)
{
    struct config *c = k->c;
    unsigned first = c->instance_count, primaries = 0;
    for (unsigned i = 0; i < c->instance_count; i++) {
        struct config_instance *in = &c->instance[i];
        bool given = k->origin[i].role_given;
        if (!in->name && !k->origin[i].bad)
            complain_of_row(k, i, "expected a name", "");
        if (!in->url && !k->origin[i].bad)
            complain_of_row(k, i, "expected a url", "");
        for (unsigned j = 0; j < i; j++) {
            const struct config_instance *other = &c->instance[j];
            if (in->name && other->name && strcmp(in->name, other->name) == 0)
                complain_of_row(k, i, "expected names that differ, twice: ", in->name);
            if (in->host && other->host && in->port == other->port &&
                strcasecmp(in->host, other->host) == 0)
                complain_of_row(k, i, "expected addresses that differ, twice: ", in->url);
        }
        if (given && in->role == CONFIG_PRIMARY && ++primaries == 2)
            complain_of_row(k, i, "expected one instance with role primary", ", not two");
        if (!given && (first == c->instance_count || in->priority > c->instance[first].priority))
            first = i;
    }
    if (primaries == 0 && first < c->instance_count)
        c->instance[first].role = CONFIG_PRIMARY;
    else if (primaries == 0 && c->instance_count > 0)
        complain_of_row(k, 0, "expected one instance that is not a replica", "");
}

/* Highest priority first; equals stay in the order given. */
static void sort_instances(struct config *c)
{
    for (unsigned i = 1; i < c->instance_count; i++) {
        struct config_instance moved = c->instance[i];
        unsigned j = i;
        for (; j > 0 && c->instance[j - 1].priority < moved.priority; j--)
            c->instance[j] = c->instance[j - 1];
        c->instance[j] = moved;
    }
}

/* ---- the whole ---------------------------------------------------------------------------------
 */

static bool is_set(const struct check *k, unsigned at)
{
    return k->from[at] && *k->from[at]->text;
}

/* Instances come from one place, whichever sources named the others. */
static void draft_instances(struct check *k, const struct config_raws *raws)
{
    const struct config_raw *list =
        is_set(k, AT_chroma_instances) ? k->from[AT_chroma_instances] : NULL;
    static const unsigned pair[] = {AT_primary_url, AT_replica_url};
    bool rows = false, mixed = false;
    for (unsigned i = 0; i < raws->n; i++)
        if (is_row(&raws->v[i])) {
            take_row(k, &raws->v[i]);
            rows = true;
        }
    if (list)
        take_list(k, list);
    take_pair(k, AT_primary_url, "primary", 100, CONFIG_PRIMARY);
    take_pair(k, AT_replica_url, "replica", 80, CONFIG_REPLICA);
    for (unsigned i = 0; i < COUNT_OF(pair); i++)
        if (is_set(k, pair[i]) && (rows || list)) {
            mixed = true;
            complain_of(k, k->from[pair[i]], false, "expected either this or %s",
                        rows ? "instances in the config file" : "CHROMA_INSTANCES");
        }
    if (rows && list) {
        mixed = true;
        complain(k,
                 "CHROMA_INSTANCES (%.120s): expected either this or instances in the config file",
                 list->source);
    }
    if (is_set(k, AT_replica_url) && !is_set(k, AT_primary_url)) {
        mixed = true;
        complain_of(k, k->from[AT_replica_url], false, "expected PRIMARY_URL beside it");
    }
    if (!mixed)
        check_instances(k);
    if (k->c->instance_count == 0 && k->mistakes == 0)
        complain(k, "no instances: expected PRIMARY_URL, CHROMA_INSTANCES or instances in the "
                    "config file");
}

static void check_combinations(struct check *k)
{
    struct config *c = k->c;
    if (c->sync_coordinator && !c->sync_distributed)
        complain_of(k, k->from[AT_sync_coordinator], false,
                    "expected SYNC_DISTRIBUTED=true beside it");
    if (c->try_timeout > c->request_timeout) {
        if (k->from[AT_try_timeout] && k->from[AT_request_timeout])
            complain_of(k, k->from[AT_try_timeout], false,
                        "expected at most REQUEST_TIMEOUT, which is %g", c->request_timeout);
        c->try_timeout = c->request_timeout;
    }
}

struct config *config_build(const struct config_raws *raws, struct buf *errors)
{
    struct config *c = base_zalloc(sizeof *c);
    struct check k = {.c = c, .errors = errors};
    c->instance = base_zalloc(CONFIG_INSTANCES_MAX * sizeof *c->instance);
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        bool ok = store(c, &settings[i], settings[i].def);
        must(ok);
    }
    for (unsigned i = 0; i < raws->n; i++)
        if (!is_row(&raws->v[i]))
            take_setting(&k, &raws->v[i]);
    check_combinations(&k);
    draft_instances(&k, raws); /* after the settings: MAXCONN is theirs by default */
    if (k.mistakes == 0) {
        sort_instances(c);
        return c;
    }
    config_free(c);
    return NULL;
}

void config_free(struct config *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < SETTING_COUNT; i++)
        if (is_text(&settings[i]))
            free(*(char **)field_of(c, &settings[i]));
    for (unsigned i = 0; i < c->instance_count; i++) {
        free(c->instance[i].name);
        free(c->instance[i].url);
        free(c->instance[i].host);
    }
    free(c->instance);
    free(c);
}

/* ---- showing it --------------------------------------------------------------------------------
 */

/* The value in base units: seconds, bytes, true or false. Text is the config's own memory. */
static const char *spell(const struct config *c, const struct setting *s, char out[40])
{
    const void *field = field_of(c, s);
    switch (s->type) {
    case INT:
    case BYTES:
        snprintf(out, 40, "%ld", *(const long *)field);
        return out;
    case SECONDS:
        snprintf(out, 40, "%.15g", *(const double *)field);
        return out;
    case BOOL:
        return *(const bool *)field ? "true" : "false";
    case TEXT:
    case SECRET:
        return *(char *const *)field;
    }
    return "";
}

void config_unreloadable(const struct config *was, const struct config *now, struct buf *names)
{
    char a[40], b[40];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        if (!s->reloadable && strcmp(spell(was, s, a), spell(now, s, b)) != 0)
            buf_printf(names, "%s%s", buf_len(names) ? ", " : "", s->name);
    }
}

void config_explain(struct buf *out)
{
    static const char *const types[] = {
        [INT] = "number",      [SECONDS] = "seconds", [BYTES] = "bytes",
        [BOOL] = "true|false", [TEXT] = "text",       [SECRET] = "text, secret"};
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        const char *words = words_of(s);
        char type[64];
        if (words)
            snprintf(type, sizeof type, "%.*s", (int)strlen(words) - 2, words + 1);
        else if (is_text(s) || s->type == BOOL)
            snprintf(type, sizeof type, "%s", types[s->type]);
        else
            snprintf(type, sizeof type, "%s, %.10g to %.10g", types[s->type], s->least, s->most);
        buf_printf(out, "%-22s %-32s default %-14s %s\n%22s %s\n", s->name, type,
                   *s->def ? s->def : "(none)", s->reloadable ? "HUP" : "restart", "", s->doc);
    }
    buf_puts(out, "\nSeconds may carry a unit (5s, 200ms), bytes too (32k, 8m, 1g). HUP: a change "
                  "in the config\n"
                  "file takes effect at the next HUP; restart: only when chromux starts.\n");
}

void config_print(const struct config *c, struct buf *out)
{
    static const char *const roles[] = {"primary", "replica"};
    char text[40];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        const char *value = spell(c, s, text);
        buf_printf(out, "%s=%s\n", s->name, s->type == SECRET && *value ? "***" : value);
    }
    for (unsigned i = 0; i < c->instance_count; i++) {
        const struct config_instance *in = &c->instance[i];
        buf_printf(out, "instance %s %s role=%s priority=%ld weight=%ld maxconn=%ld\n", in->name,
                   in->url, roles[in->role], in->priority, in->weight, in->maxconn);
    }
}

void config_each(const struct config *c, config_visit *visit, void *arg)
{
    char text[40];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        if (s->type != SECRET)
            visit(arg, s->name,
                  s->type == TEXT   ? CONFIG_TEXT
                  : s->type == BOOL ? CONFIG_BOOLEAN
                                    : CONFIG_NUMBER,
                  spell(c, s, text));
    }
}
