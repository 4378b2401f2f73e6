/* config.c: owns the meaning of every setting: what may be said, what it becomes, what is wrong
 * with it. The SETTINGS list is the one table; instances are drafted here too, whichever of their
 * three sources names them. How text is read is value's. */
#include "config.h"

#include "value.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

static const struct setting {
    const char *name, *def;
    enum value_type type;
    size_t offset;
    double least, most;
    bool reloadable;
    const char *doc;
} settings[] = {
#define ROW(f, NAME, type, def, lo, hi, reload, doc)                                               \
    {#NAME, def, VALUE_##type, offsetof(struct config, f), lo, hi, reload, doc},
    SETTINGS(ROW)
#undef ROW
};

enum {
#define ROW(f, NAME, type, def, lo, hi, reload, doc) AT_##f,
    SETTINGS(ROW)
#undef ROW
        SETTING_COUNT
};

#define ENVIRONMENT  "environment"
#define PREFIX       "CHROMUX_"
#define ERROR_MAX    600
#define EXPECTED_MAX 120
#define NAME_SHAPE   "^[A-Za-z0-9._-]{1,63}$"

static bool is_server_list(const char *text)
{
    return !*text || value_is_address_list(text);
}

/* Messages may say what is not for everybody: in clear only on this machine. */
#define WEBHOOK_SHAPE                                                                              \
    "^(https://[^/?#[:space:][:cntrl:]][^[:space:][:cntrl:]]*|"                                    \
    "http://(127[.]0[.]0[.]1|localhost|\\[::1])(:[0-9]+)?(/[^[:space:][:cntrl:]]*)?)?$"
#define WEBHOOK_EXPECTED "https://..., or http:// to this machine"

/* Text settings that take only a certain shape, or what a function knows. */
static const struct {
    unsigned at;
    const char *shape;
    bool (*fits)(const char *text);
    const char *expected;
} closed[] = {
    {AT_unreplicated_reads, "^(primary|any)$", NULL, "primary or any"},
    {AT_log_format, "^(kv|json)$", NULL, "kv or json"},
    {AT_log_level, "^(debug|info|warn|error)$", NULL, "debug, info, warn or error"},
    {AT_admin_port,
     "^([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])?$", NULL,
     "a port between 0 and 65535, or nothing"},
    {AT_slack_webhook_url, WEBHOOK_SHAPE, NULL, WEBHOOK_EXPECTED},
    {AT_webhook_url, WEBHOOK_SHAPE, NULL, WEBHOOK_EXPECTED},
    {AT_deployment_name, "^.{1,60}$", NULL, "1 to 60 bytes"},
    {AT_public_url, "^(https?://[^[:space:][:cntrl:]]+)?$", NULL, "http(s)://..., or nothing"},
    {AT_listen_address, NULL, value_is_address, "an IPv4 or IPv6 address"},
    {AT_dns_servers, NULL, is_server_list, "address[:port],... ([IPv6]:port), or nothing"},
};

/* One check: the config that grows, what was wrong so far, and who set what. */
struct check {
    struct config *c;
    struct buf *errors;
    unsigned mistakes;
    const struct config_raw *from[SETTING_COUNT]; /* the last to set it; NULL: the default */
    bool refused[SETTING_COUNT];                  /* its value says nothing of what goes with it */
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

/* Names: exact; in the environment also with the prefix; in the file also in lower case. */
static const struct setting *setting_of(const struct config_raw *r)
{
    const struct setting *s = find_setting(r->name);
    if (!s && from_environment(r) && strncmp(r->name, PREFIX, strlen(PREFIX)) == 0)
        s = find_setting(r->name + strlen(PREFIX));
    for (unsigned i = 0; !s && i < SETTING_COUNT && from_file(r); i++)
        if (strcasecmp(r->name, settings[i].name) == 0 && !value_fits("[A-Z]", r->name))
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

/* The value as an error line repeats it. */
static const char *show(const struct config_raw *r, char out[VALUE_SHOWN_MAX])
{
    const struct setting *s = setting_of(r);
    if (s && s->type == VALUE_SECRET)
        return "***";
    return value_show(r->text, r->kind == CONFIG_TEXT, out);
}

static void PRINTF(3, 4)
    complain_of(struct check *k, const struct config_raw *r, const char *fmt, ...)
{
    char text[ERROR_MAX / 2], shown[VALUE_SHOWN_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    complain(k, "%.80s = %s (%.120s): %s", r->name, show(r, shown), r->source, text);
}

static void complain_unknown(struct check *k, const struct config_raw *r)
{
    bool prefixed = from_environment(r) && strncmp(r->name, PREFIX, strlen(PREFIX)) == 0;
    const char *bare = prefixed ? r->name + strlen(PREFIX) : r->name, *nearest = NULL;
    unsigned least = 3;
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        unsigned d = value_distance(bare, settings[i].name);
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

/* ---- settings -------------------------------------------------------------------------------- */

static void *field_of(const struct config *c, const struct setting *s)
{
    return (char *)c + s->offset;
}

static bool is_text(const struct setting *s)
{
    return s->type == VALUE_TEXT || s->type == VALUE_SECRET;
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
    const char *kind = value_types[s->type].expected;
    if (closed_as(s) >= 0)
        return closed[closed_as(s)].expected;
    if (s->type == VALUE_BOOL || is_text(s))
        return *s->def && is_text(s) ? "text that is not empty" : kind;
    snprintf(out, EXPECTED_MAX, "%s between %.10g and %.10g", kind, s->least, s->most);
    return out;
}

static bool takes_text(const struct setting *s, const char *text)
{
    int at = closed_as(s);
    if (at < 0)
        return (*text || !*s->def) && !value_fits("[[:cntrl:]]", text);
    return closed[at].fits ? closed[at].fits(text) : value_fits(closed[at].shape, text);
}

/* Reads text into the setting's field; false when it is not what the setting takes. */
static bool store(struct config *c, const struct setting *s, const char *text)
{
    return (!is_text(s) || takes_text(s, text)) &&
           value_store(s->type, field_of(c, s), text, s->least, s->most);
}

static bool kind_fits(const struct config_raw *r, const struct setting *s)
{
    if (!from_file(r) || (s == &settings[AT_admin_port] && r->kind == CONFIG_NUMBER))
        return true;
    return r->kind == CONFIG_NUMBER ? value_types[s->type].numbers
           : r->kind == CONFIG_TEXT ? value_types[s->type].texts
                                    : value_types[s->type].booleans;
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
    if (kind && store(k->c, s, r->text)) {
        k->from[at] = r;
        return;
    }
    k->refused[at] = true;
    complain_of(k, r, "expected %s%s", expectation(s, expected),
                !kind && s->type == VALUE_INT && r->kind == CONFIG_TEXT ? ", without quotes" : "");
}

/* ---- instances ------------------------------------------------------------------------------- */

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
        if (r->kind == CONFIG_NUMBER && value_read_number(r->text, VALUE_INT, &d) &&
            d >= numbers[i].least && d <= numbers[i].most)
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
        wrong = value_fits(NAME_SHAPE, text) ? NULL : "expected 1 to 63 of A-Z a-z 0-9 . _ -";
    } else if (strcmp(field, "url") == 0) {
        free(in->url);
        free(in->host);
        in->url = base_strdup(r->text);
        in->host = NULL;
        wrong = value_read_url(text, &in->host, &in->port);
    } else if (strcmp(field, "role") == 0) {
        in->role = strcmp(text, "primary") == 0 ? CONFIG_PRIMARY : CONFIG_REPLICA;
        k->origin[in - k->c->instance].role_given = true;
        wrong = value_fits("^(primary|replica)$", text) ? NULL : "expected primary or replica";
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

/* label: "CHROMA_INSTANCES[2]" */
static void add_row(struct config_raws *rows, const char *label, const char *field,
                    const char *text, const char *source)
{
    bool words = value_fits("^(name|url|role)$", field);
    char *name = base_printf("%s.%s", label, field);
    config_raws_add(rows, name, text, words ? CONFIG_TEXT : CONFIG_NUMBER, source);
    free(name);
}

/* CHROMA_INSTANCES, name=url[,key=value...];..., as rows like those of the config file. */
static void split_list(struct check *k, const struct config_raw *list, struct config_raws *rows)
{
    char *copy = base_strdup(list->text), *rest = copy, label[40];
    for (unsigned row = 1; rest; row++) {
        char *fields = value_next_piece(&rest, ";"), *first = fields;
        snprintf(label, sizeof label, "CHROMA_INSTANCES[%u]", row);
        for (bool leads = true; *first && fields; leads = false) {
            char *value = value_next_piece(&fields, ","), *key = value_next_piece(&value, "=");
            if (!value || (!leads && value_fits("^(name|url)$", key))) {
                struct config_raw piece = {label, key, CONFIG_TEXT, list->source};
                complain_of(k, &piece, "expected name=url[,key=value...]");
                if (leads)
                    break;
                continue;
            }
            if (leads)
                add_row(rows, label, "name", key, list->source);
            add_row(rows, label, leads ? "url" : key, value_next_piece(&value, ""), list->source);
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

/* An instance that is chromux itself would send every request round and round. */
static void check_not_ourselves(struct check *k, unsigned i)
{
    const struct config *c = k->c;
    const struct config_instance *in = &c->instance[i];
    const struct origin *o = &k->origin[i];
    if (!in->host || in->port != c->port || k->refused[AT_port] || k->refused[AT_listen_address] ||
        !value_leads_to(in->host, c->listen_address))
        return;
    char *name =
        base_printf("%.*s%s", (int)o->name_n, o->raw->name, o->raw->name[o->name_n] ? ".url" : "");
    struct config_raw url = {name, in->url, CONFIG_TEXT, o->raw->source};
    complain_of(k, &url,
                "expected a Chroma server, not chromux itself (LISTEN_ADDRESS %.48s, PORT %ld)",
                c->listen_address, c->port);
    free(name);
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
        check_not_ourselves(k, i);
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

/* A part of the request's time: told when both were said, else cut to what there is. */
static void fit_into_request(struct check *k, unsigned at, double *part)
{
    double whole = k->c->request_timeout;
    if (*part <= whole)
        return;
    if (k->from[at] && k->from[AT_request_timeout])
        complain_of(k, k->from[at], "expected at most REQUEST_TIMEOUT, which is %g", whole);
    *part = whole;
}

static void check_combinations(struct check *k)
{
    struct config *c = k->c;
    const struct config_raw *admin = k->from[AT_admin_port], *uri = k->from[AT_max_uri];
    if (c->sync_coordinator && !c->sync_distributed)
        complain_of(k, k->from[AT_sync_coordinator], "expected SYNC_DISTRIBUTED=true beside it");
    fit_into_request(k, AT_try_timeout, &c->try_timeout);
    fit_into_request(k, AT_connect_timeout, &c->connect_timeout);
    if (admin && c->port > 0 && atoi(c->admin_port) == c->port && !k->refused[AT_port])
        complain_of(k, admin, "expected another port than PORT, which is %ld", c->port);
    if (c->max_uri > c->max_head) {
        if (uri && !k->refused[AT_max_head])
            complain_of(k, uri, "expected at most MAX_HEAD_BYTES, which is %ld", c->max_head);
        c->max_uri = c->max_head; /* only MAX_HEAD_BYTES was said */
    }
}

struct config *config_build(const struct config_raws *raws, struct buf *errors)
{
    struct config *c = base_zalloc(sizeof *c);
    struct check k = {.c = c, .errors = errors};
    c->instance = base_zalloc(CONFIG_INSTANCES_MAX * sizeof *c->instance);
    c->source = base_zalloc(SETTING_COUNT * sizeof *c->source);
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        bool ok = store(c, &settings[i], settings[i].def);
        must(ok);
    }
    for (unsigned i = 0; i < raws->n; i++)
        if (!is_row(&raws->v[i]))
            take_setting(&k, &raws->v[i]);
    check_combinations(&k);
    take_instances(&k, raws); /* after the settings: MAXCONN is theirs by default */
    if (k.mistakes > 0) {
        config_free(c);
        return NULL;
    }
    sort_instances(c);
    for (unsigned i = 0; i < SETTING_COUNT; i++)
        if (k.from[i])
            c->source[i] = base_strdup(k.from[i]->source);
    return c;
}

void config_free(struct config *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        if (is_text(&settings[i]))
            free(*(char **)field_of(c, &settings[i]));
        free(c->source[i]);
    }
    for (unsigned i = 0; i < c->instance_count; i++) {
        free(c->instance[i].name);
        free(c->instance[i].url);
        free(c->instance[i].host);
    }
    free(c->instance);
    free(c->source);
    free(c);
}

/* ---- showing it ------------------------------------------------------------------------------ */

/* The value in base units: seconds, bytes, true or false. Text is the config's own memory. */
static const char *spell(const struct config *c, const struct setting *s,
                         char out[VALUE_SPELLED_MAX])
{
    return value_spell(s->type, field_of(c, s), out);
}

void config_complain(const struct config *c, const char *name, const char *text, struct buf *errors)
{
    const struct setting *s = find_setting(name);
    must(s != NULL);
    const char *source = c->source[s - settings];
    char spelled[VALUE_SPELLED_MAX], shown[VALUE_SHOWN_MAX];
    const char *value = spell(c, s, spelled);
    bool hidden = s->type == VALUE_SECRET && *value;
    (void)!buf_addf(errors, "%s = %s (%.120s): %s\n", name,
                    hidden ? "***" : value_show(value, is_text(s), shown),
                    source ? source : "default", text);
}

void config_unreloadable(const struct config *was, const struct config *now, struct buf *names)
{
    char a[VALUE_SPELLED_MAX], b[VALUE_SPELLED_MAX];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        if (!s->reloadable && strcmp(spell(was, s, a), spell(now, s, b)) != 0)
            buf_printf(names, "%s%s", buf_len(names) ? ", " : "", s->name);
    }
}

/* What a setting takes, as the page of --explain says it. */
static const char *type_of(const struct setting *s, char out[EXPECTED_MAX])
{
    const char *name = value_types[s->type].name;
    if (closed_as(s) >= 0)
        return closed[closed_as(s)].expected;
    if (is_text(s) || s->type == VALUE_BOOL)
        return name;
    snprintf(out, EXPECTED_MAX, "%s, %.10g to %.10g", name, s->least, s->most);
    return out;
}

void config_explain(struct buf *out)
{
    char type[EXPECTED_MAX];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        /* What has no greatest length comes last, so that the columns hold. */
        buf_printf(out, "%-22s default %-14s %-8s %s\n%22s %s\n", s->name,
                   *s->def ? s->def : "(none)", s->reloadable ? "HUP" : "restart", type_of(s, type),
                   "", s->doc);
    }
    buf_puts(out, "\nSeconds may carry a unit (5s, 200ms), bytes too (32k, 8m, 1g). HUP: a change "
                  "in the config\n"
                  "file takes effect at the next HUP; restart: only when chromux starts.\n");
}

void config_print(const struct config *c, struct buf *out)
{
    static const char *const roles[] = {"primary", "replica"};
    char text[VALUE_SPELLED_MAX];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        const char *value = spell(c, s, text);
        buf_printf(out, "%s=%s\n", s->name, s->type == VALUE_SECRET && *value ? "***" : value);
    }
    for (unsigned i = 0; i < c->instance_count; i++) {
        const struct config_instance *in = &c->instance[i];
        buf_printf(out, "instance %s %s role=%s priority=%ld weight=%ld maxconn=%ld\n", in->name,
                   in->url, roles[in->role], in->priority, in->weight, in->maxconn);
    }
}

void config_each(const struct config *c, config_visit *visit, void *arg)
{
    char text[VALUE_SPELLED_MAX];
    for (unsigned i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];
        if (s->type != VALUE_SECRET)
            visit(arg, s->name,
                  s->type == VALUE_TEXT   ? CONFIG_TEXT
                  : s->type == VALUE_BOOL ? CONFIG_BOOLEAN
                                          : CONFIG_NUMBER,
                  spell(c, s, text));
    }
}
