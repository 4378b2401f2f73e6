/* config.c: owns the meaning of every setting: what may be said, what it becomes, what is wrong
 * with it. The SETTINGS list is the one table; instances are drafted here too, whichever of their
 * three sources names them. */
#include "config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <regex.h>
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

/* What an error line and the page of --explain call a type, and what the strict config file may say
 * for it: text carries a unit for some. */
static const struct {
    const char *name, *expected;
    bool numbers, texts, booleans;
} types[] = {
    [INT] = {"number", "a whole number", .numbers = true},
    [SECONDS] = {"seconds", "seconds", .numbers = true, .texts = true},
    [BYTES] = {"bytes", "bytes", .numbers = true, .texts = true},
    [BOOL] = {"true|false", "true or false", .booleans = true},
    [TEXT] = {"text", "text", .texts = true},
    [SECRET] = {"text, secret", "text", .texts = true},
};

#define ENVIRONMENT  "environment"
#define PREFIX       "CHROMUX_"
#define ERROR_MAX    600
#define EXPECTED_MAX 120
#define SHOWN_MAX    160 /* bytes of a value that an error line repeats */
/* Shapes of text, as POSIX extended expressions. */
#define NAME_SHAPE "^[A-Za-z0-9._-]{1,63}$"
#define URL_SHAPE  "^http://(\\[([0-9A-Fa-f:.]{2,45})]|([A-Za-z0-9._-]{1,253}))(:([0-9]{1,5}))?/?$"
enum { URL_V6 = 2, URL_HOST = 3, URL_PORT = 5, URL_GROUPS }; /* its parts */

/* Text settings that take only a certain shape. */
static const struct {
    unsigned at;
    const char *shape, *expected;
} closed[] = {
    {AT_unreplicated_reads, "^(primary|any)$", "primary or any"},
    {AT_log_format, "^(kv|json)$", "kv or json"},
    {AT_log_level, "^(debug|info|warn|error)$", "debug, info, warn or error"},
    {AT_admin_port,
     "^([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])?$",
     "a port between 0 and 65535, or nothing"},
    {AT_slack_webhook_url, "^(https://.+|http://(127[.]0[.]0[.]1|localhost|\\[::1])([:/].*)?)?$",
     "https://..., or http:// to this machine"},
};

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

/* One check: the config that grows, what was wrong so far, and who set what. */
struct check {
    struct config *c;
    struct buf *errors;
    unsigned mistakes;
    const struct config_raw *from[SETTING_COUNT]; /* the last to set it; NULL: the default */
    /* Beside c->instance[]: the raw that named it first ("instances[2].url"), and how much of that
     * name is the row's ("instances[2]"). */
    struct origin {
        const struct config_raw *raw;
        size_t name_n;
        bool role_given;
    } origin[CONFIG_INSTANCES_MAX];
    bool too_many;
};

/* ---- raws ------------------------------------------------------------------------------------ */

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

static bool fits(const char *shape, const char *text)
{
    regex_t re;
    must(regcomp(&re, shape, REG_EXTENDED | REG_NOSUB) == 0);
    bool ok = regexec(&re, text, 0, NULL, 0) == 0;
    regfree(&re);
    return ok;
}

/* Names: exact; in the environment also with the prefix; in the file also in lower case. */
static const struct setting *setting_of(const struct config_raw *r)
{
    const struct setting *s = find_setting(r->name);
    if (!s && from_environment(r) && strncmp(r->name, PREFIX, strlen(PREFIX)) == 0)
        s = find_setting(r->name + strlen(PREFIX));
    for (unsigned i = 0; !s && i < SETTING_COUNT && from_file(r); i++)
        if (strcasecmp(r->name, settings[i].name) == 0 && !fits("[A-Z]", r->name))
            s = &settings[i];
    return s;
}

/* ---- telling mistakes ------------------------------------------------------------------------ */

static void PRINTF(2, 3) complain(struct check *k, const char *fmt, ...)
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

/* The value as an error line repeats it: text quoted, control bytes as ?, cut, secrets blanked. A
 * user and password in a URL (RFC 3986 3.2.1) are a secret too. */
static const char *show(const struct config_raw *r, char out[SHOWN_MAX])
{
    const struct setting *s = setting_of(r);
    if (s && s->type == SECRET)
        return "***";
    const char *quote = r->kind == CONFIG_TEXT ? "\"" : "", *slashes = strstr(r->text, "://");
    size_t n = slashes && strchr(slashes, '@') ? (size_t)(slashes - r->text) + 3 : strlen(r->text);
    const char *rest = r->text[n] ? "***" : "";
    if (n > SHOWN_MAX - 10) {
        n = SHOWN_MAX - 10;
        rest = "...";
    }
    snprintf(out, SHOWN_MAX, "%s%.*s%s%s", quote, (int)n, r->text, rest, quote);
    for (char *p = out; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    return out;
}

static void PRINTF(3, 4)
    complain_of(struct check *k, const struct config_raw *r, const char *fmt, ...)
{
    char text[ERROR_MAX / 2], shown[SHOWN_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    complain(k, "%.80s = %s (%.120s): %s", r->name, show(r, shown), r->source, text);
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

/* ---- reading values -------------------------------------------------------------------------- */

/* Digits and perhaps a unit: "8000"; "0.5", "5s", "200ms"; "1024", "32k". */
static bool read_number(const char *text, enum type type, double *out)
{
    static const struct {
        enum type type;
        const char *unit;
        double factor;
    } units[] = {{SECONDS, "s", 1},
                 {SECONDS, "ms", 0.001},
                 {BYTES, "k", 1024},
                 {BYTES, "m", 1 << 20},
                 {BYTES, "g", 1 << 30}};
    size_t n = strspn(text, type == SECONDS ? "0123456789." : "0123456789");
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

static bool read_bool(const char *text, bool *out)
{
    *out = fits("^(true|True|TRUE|1|yes|on)$", text);
    return *out || fits("^(false|False|FALSE|0|no|off)$", text);
}

/* ---- settings -------------------------------------------------------------------------------- */

static void *field_of(const struct config *c, const struct setting *s)
{
    return (char *)c + s->offset;
}

static bool is_text(const struct setting *s)
{
    return s->type == TEXT || s->type == SECRET;
}

/* The shape and expectation of a text setting that has one, or -1. */
static int closed_as(const struct setting *s)
{
    for (unsigned i = 0; i < COUNT_OF(closed); i++)
        if (&settings[closed[i].at] == s)
            return (int)i;
    return -1;
}

static const char *expectation(const struct setting *s, char out[EXPECTED_MAX])
{
    const char *kind = types[s->type].expected;
    if (closed_as(s) >= 0)
        return closed[closed_as(s)].expected;
    if (s->type == BOOL || is_text(s))
        return *s->def && is_text(s) ? "text that is not empty" : kind;
    snprintf(out, EXPECTED_MAX, "%s between %.10g and %.10g", kind, s->least, s->most);
    return out;
}

/* Reads text into the setting's field; false when it is not what the setting takes. */
static bool store(struct config *c, const struct setting *s, const char *text)
{
    void *field = field_of(c, s);
    double d;
    if (s->type == BOOL)
        return read_bool(text, field);
    if (is_text(s)) {
        if (closed_as(s) >= 0 ? !fits(closed[closed_as(s)].shape, text)
                              : (*s->def && !*text) || fits("[[:cntrl:]]", text))
            return false;
        free(*(char **)field);
        *(char **)field = base_strdup(text);
        return true;
    }
    if (!read_number(text, s->type, &d) || d < s->least || d > s->most)
        return false;
    if (s->type == SECONDS)
        *(double *)field = d;
    else
        *(long *)field = (long)d;
    return true;
}

static bool kind_fits(const struct config_raw *r, const struct setting *s)
{
    if (!from_file(r) || (s == &settings[AT_admin_port] && r->kind == CONFIG_NUMBER))
        return true;
    return r->kind == CONFIG_NUMBER ? types[s->type].numbers
           : r->kind == CONFIG_TEXT ? types[s->type].texts
                                    : types[s->type].booleans;
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
        strcmp(before->text, r->text) != 0) {
        complain_of(k, r, "expected the same value as %s gives", before->name);
        return;
    }
    bool kind = kind_fits(r, s);
    char expected[EXPECTED_MAX];
    if (kind && store(k->c, s, r->text))
        k->from[at] = r;
    else
        complain_of(k, r, "expected %s%s", expectation(s, expected),
                    !kind && s->type == INT && r->kind == CONFIG_TEXT ? ", without quotes" : "");
}

/* ---- instances ------------------------------------------------------------------------------- */

/* Takes url apart; answers what is wrong with it, or NULL. */
static const char *read_url(const char *url, char **host, int *port)
{
    regex_t re;
    regmatch_t at[URL_GROUPS];
    must(regcomp(&re, URL_SHAPE, REG_EXTENDED) == 0);
    bool ok = regexec(&re, url, COUNT_OF(at), at, 0) == 0;
    regfree(&re);
    *port = ok && at[URL_PORT].rm_so >= 0 ? atoi(url + at[URL_PORT].rm_so) : 8000; /* Chroma's */
    ok = ok && *port >= 1 && *port <= 65535;
    for (unsigned i = 0; !ok && i < COUNT_OF(bad_urls); i++)
        if (fits(bad_urls[i].shape, url))
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

/* One field of an instance. */
static void take_field(struct check *k, struct config_instance *in, const char *field,
                       const struct config_raw *r)
{
    const struct {
        const char *name;
        long *to;
        int least, most;
    } numbers[] = {{"priority", &in->priority, 0, 1000000},
                   {"weight", &in->weight, 1, 1000},
                   {"maxconn", &in->maxconn, 1, 100000}};
    double d;
    for (unsigned i = 0; i < COUNT_OF(numbers); i++) {
        if (strcmp(field, numbers[i].name) != 0)
            continue;
        if (r->kind == CONFIG_NUMBER && read_number(r->text, INT, &d) && d >= numbers[i].least &&
            d <= numbers[i].most)
            *numbers[i].to = (long)d;
        else
            complain_of(k, r, "expected a whole number between %d and %d", numbers[i].least,
                        numbers[i].most);
        return;
    }
    const char *text = r->kind == CONFIG_TEXT ? r->text : "", *wrong = NULL;
    if (strcmp(field, "name") == 0) {
        free(in->name);
        in->name = base_strdup(r->text);
        wrong = fits(NAME_SHAPE, text) ? NULL : "expected 1 to 63 of A-Z a-z 0-9 . _ -";
    } else if (strcmp(field, "url") == 0) {
        free(in->url);
        free(in->host);
        in->url = base_strdup(r->text);
        in->host = NULL;
        wrong = read_url(text, &in->host, &in->port);
    } else if (strcmp(field, "role") == 0) {
        in->role = strcmp(text, "primary") == 0 ? CONFIG_PRIMARY : CONFIG_REPLICA;
        k->origin[in - k->c->instance].role_given = true;
        wrong = fits("^(primary|replica)$", text) ? NULL : "expected primary or replica";
    } else {
        complain(k,
                 "unknown field %.80s (%.120s): expected name, url, priority, weight, maxconn or "
                 "role",
                 r->name, r->source);
    }
    if (wrong)
        complain_of(k, r, "%s", wrong);
}

/* "instances[2].weight", "CHROMA_INSTANCES[1].name", or "PRIMARY_URL", which is a row's url. */
static void take_row(struct check *k, const struct config_raw *r)
{
    struct config *c = k->c;
    size_t n = strcspn(r->name, ".");
    unsigned i = 0;
    while (i < c->instance_count &&
           !(k->origin[i].name_n == n && strncmp(k->origin[i].raw->name, r->name, n) == 0))
        i++;
    if (i == CONFIG_INSTANCES_MAX) {
        if (!k->too_many)
            complain(k, "%.*s (%.120s): expected at most %d instances", (int)n, r->name, r->source,
                     CONFIG_INSTANCES_MAX);
        k->too_many = true;
        return;
    }
    if (i == c->instance_count) {
        c->instance_count++;
        k->origin[i] = (struct origin){.raw = r, .name_n = n};
        c->instance[i] = (struct config_instance){
            .priority = 100, .weight = 1, .maxconn = c->maxconn, .role = CONFIG_REPLICA};
    }
    take_field(k, &c->instance[i], r->name[n] ? r->name + n + 1 : "url", r);
}

static bool is_row(const struct config_raw *r)
{
    return from_file(r) && strncmp(r->name, "instances[", 10) == 0;
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

/* label: "CHROMA_INSTANCES[2]" */
static void add_row(struct config_raws *rows, const char *label, const char *field,
                    const char *text, const char *source)
{
    bool words = fits("^(name|url|role)$", field);
    char *name = base_printf("%s.%s", label, field);
    config_raws_add(rows, name, text, words ? CONFIG_TEXT : CONFIG_NUMBER, source);
    free(name);
}

/* CHROMA_INSTANCES, name=url[,key=value...];..., as rows like those of the config file. */
static void split_list(struct check *k, const struct config_raw *list, struct config_raws *rows)
{
    char *copy = base_strdup(list->text), *rest = copy, label[40];
    for (unsigned row = 1; rest; row++) {
        char *fields = next_piece(&rest, ";"), *first = fields;
        snprintf(label, sizeof label, "CHROMA_INSTANCES[%u]", row);
        for (bool leads = true; *first && fields; leads = false) {
            char *value = next_piece(&fields, ","), *key = next_piece(&value, "=");
            if (!value || (!leads && fits("^(name|url)$", key))) {
                struct config_raw piece = {label, key, CONFIG_TEXT, list->source};
                complain_of(k, &piece, "expected name=url[,key=value...]");
                if (leads)
                    break;
                continue;
            }
            if (leads)
                add_row(rows, label, "name", key, list->source);
            add_row(rows, label, leads ? "url" : key, next_piece(&value, ""), list->source);
        }
    }
    free(copy);
}

/* PRIMARY_URL and REPLICA_URL, as rows. */
static void split_pair(const struct config_raw *url, const char *label, const char *name,
                       const char *priority, struct config_raws *rows)
{
    config_raws_add(rows, label, url->text, CONFIG_TEXT, url->source);
    add_row(rows, label, "name", name, url->source);
    add_row(rows, label, "role", name, url->source);
    add_row(rows, label, "priority", priority, url->source);
}

static void complain_of_row(struct check *k, unsigned i, const char *text, const char *detail)
{
    const struct origin *o = &k->origin[i];
    complain(k, "%.*s (%.120s): expected %s%.80s", (int)o->name_n, o->raw->name, o->raw->source,
             text, detail);
}

/* What must hold among instances: names and addresses differ, and exactly one is the primary. */
static void check_instances(struct check *k)
{
    struct config *c = k->c;
    unsigned first = c->instance_count, primaries = 0;
    for (unsigned i = 0; i < c->instance_count; i++) {
        struct config_instance *in = &c->instance[i];
        if (!in->name)
            complain_of_row(k, i, "a name", "");
        if (!in->url)
            complain_of_row(k, i, "a url", "");
        for (unsigned j = 0; j < i; j++) {
            const struct config_instance *other = &c->instance[j];
            if (in->name && other->name && strcmp(in->name, other->name) == 0)
                complain_of_row(k, i, "a name of its own, not another ", in->name);
            if (in->host && other->host && in->port == other->port &&
                strcasecmp(in->host, other->host) == 0)
                complain_of_row(k, i, "an address of its own, not that of ",
                                other->name ? other->name : "another");
        }
        if (in->role == CONFIG_PRIMARY && ++primaries == 2)
            complain_of_row(k, i, "one instance with role primary, not two", "");
        if (!k->origin[i].role_given &&
            (first == c->instance_count || in->priority > c->instance[first].priority))
            first = i;
    }
    if (primaries == 0 && first < c->instance_count)
        c->instance[first].role = CONFIG_PRIMARY;
    else if (primaries == 0 && c->instance_count > 0)
        complain_of_row(k, 0, "one instance that is not a replica", "");
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

static const struct config_raw *said(const struct check *k, unsigned at)
{
    return k->from[at] && *k->from[at]->text ? k->from[at] : NULL;
}

/* Instances come from one place only, whichever sources named them. */
static void take_instances(struct check *k, const struct config_raws *raws)
{
    const struct config_raw *list = said(k, AT_chroma_instances);
    const struct config_raw *primary = said(k, AT_primary_url), *replica = said(k, AT_replica_url);
    const struct config_raw *urls[] = {primary, replica, list};
    struct config_raws rows = {0};
    bool file = false, mixed = replica && !primary;
    for (unsigned i = 0; i < raws->n; i++)
        if (is_row(&raws->v[i])) {
            take_row(k, &raws->v[i]);
            file = true;
        }
    if (mixed)
        complain_of(k, replica, "expected PRIMARY_URL beside it");
    for (unsigned i = 0; i < COUNT_OF(urls); i++)
        if (urls[i] && (file || (list && urls[i] != list))) {
            mixed = true;
            complain_of(k, urls[i], "expected either this or %s",
                        file ? "instances in the config file" : "CHROMA_INSTANCES");
        }
    if (list)
        split_list(k, list, &rows);
    if (primary)
        split_pair(primary, "PRIMARY_URL", "primary", "100", &rows);
    if (replica)
        split_pair(replica, "REPLICA_URL", "replica", "80", &rows);
    for (unsigned i = 0; i < rows.n; i++)
        take_row(k, &rows.v[i]);
    if (!mixed)
        check_instances(k);
    if (k->c->instance_count == 0 && k->mistakes == 0)
        complain(k, "no instances: expected PRIMARY_URL, CHROMA_INSTANCES or instances in the "
                    "config file");
    config_raws_fini(&rows);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static void check_combinations(struct check *k)
{
    struct config *c = k->c;
    if (c->sync_coordinator && !c->sync_distributed)
        complain_of(k, k->from[AT_sync_coordinator], "expected SYNC_DISTRIBUTED=true beside it");
    if (c->try_timeout > c->request_timeout) {
        if (k->from[AT_try_timeout] && k->from[AT_request_timeout])
            complain_of(k, k->from[AT_try_timeout], "expected at most REQUEST_TIMEOUT, which is %g",
                        c->request_timeout);
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
    take_instances(&k, raws); /* after the settings: MAXCONN is theirs by default */
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

/* ---- showing it ------------------------------------------------------------------------------ */

/* The value in base units: seconds, bytes, true or false. Text is the config's own memory. */
static const char *spell(const struct config *c, const struct setting *s, char out[40])
{
    const void *field = field_of(c, s);
    if (is_text(s))
        return *(char *const *)field;
    if (s->type == BOOL)
        return *(const bool *)field ? "true" : "false";
    if (s->type == SECONDS)
        snprintf(out, 40, "%.15g", *(const double *)field);
    else
        snprintf(out, 40, "%ld", *(const long *)field);
    return out;
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
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        int shape = closed_as(s);
        char type[64];
        if (shape >= 0)
            snprintf(type, sizeof type, "%s", closed[shape].expected);
        else if (is_text(s) || s->type == BOOL)
            snprintf(type, sizeof type, "%s", types[s->type].name);
        else
            snprintf(type, sizeof type, "%s, %.10g to %.10g", types[s->type].name, s->least,
                     s->most);
        buf_printf(out, "%-22s %-38s default %-14s %s\n%22s %s\n", s->name, type,
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
