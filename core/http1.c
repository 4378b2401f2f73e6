/* http1.c: reads HTTP/1.1 heads and trailers, and writes them again.
 *
 * One pass over the bytes, from left to right, and the first fault ends it. So the verdict about a
 * prefix never changes when more bytes arrive: PARTIAL may become anything, OK and BAD stay. A call
 * with more bytes starts over; nothing is kept between calls but the state of the chunked coding.
 */
#include "http1.h"

#include "http1_bytes.h"

/* Next element of a comma list, trimmed; false at its end. Empty ones come too (RFC 9110 5.6.1). */
static bool list_next(struct str *list, struct str *element)
{
    if (!list->p)
        return false;
    const char *comma = list->n ? memchr(list->p, ',', list->n) : NULL;
    const char *end = list->p + list->n;
    *element = trim(list->p, comma ? comma : end);
    *list = comma ? (struct str){comma + 1, (size_t)(end - comma - 1)} : (struct str){NULL, 0};
    return true;
}

/* Digits only, at most 2^63-1: some next hop counts in signed 64 bits. */
static bool read_length(struct str s, uint64_t *length)
{
    uint64_t v = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (!is(s.p[i], DIGIT))
            return false;
        unsigned digit = (unsigned)(s.p[i] - '0');
        if (v > ((uint64_t)INT64_MAX - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *length = v;
    return s.n > 0;
}

/* ---- field names -------------------------------------------------------------------------- */

/* name is a token and known holds lower-case letters and '-', so that setting bit 5 folds case and
 * nothing else: the only other byte it maps on '-' is CR. */
static inline bool same(const char *name, const char *known, size_t n)
{
    unsigned diff = 0;
    for (size_t i = 0; i < n; i++)
        diff |= (unsigned)((name[i] | 0x20) ^ known[i]);
    return diff == 0;
}

/* By length; no two names of one length begin alike. */
static const struct {
    const char *text;
    uint8_t id;
} known_names[18][2] = {
    [2] = {{"te", HTTP1_TE}},
    [3] = {{"via", HTTP1_VIA}},
    [4] = {{"host", HTTP1_HOST}, {"date", HTTP1_DATE}},
    [6] = {{"expect", HTTP1_EXPECT}},
    [7] = {{"trailer", HTTP1_TRAILER}, {"upgrade", HTTP1_UPGRADE}},
    [10] = {{"connection", HTTP1_CONNECTION}, {"keep-alive", HTTP1_KEEP_ALIVE}},
    [11] = {{"retry-after", HTTP1_RETRY_AFTER}},
    [12] = {{"content-type", HTTP1_CONTENT_TYPE}, {"x-request-id", HTTP1_X_REQUEST_ID}},
    [14] = {{"content-length", HTTP1_CONTENT_LENGTH}},
    [15] = {{"x-forwarded-for", HTTP1_X_FORWARDED_FOR}},
    [16] = {{"proxy-connection", HTTP1_PROXY_CONNECTION},
            {"x-forwarded-host", HTTP1_X_FORWARDED_HOST}},
    [17] = {{"transfer-encoding", HTTP1_TRANSFER_ENCODING},
            {"x-forwarded-proto", HTTP1_X_FORWARDED_PROTO}},
};

static enum http1_name name_id(const char *p, size_t n)
{
    for (unsigned i = 0; n < COUNT_OF(known_names) && i < 2; i++) {
        const char *text = known_names[n][i].text;
        if (text && (p[0] | 0x20) == text[0])
            return same(p, text, n) ? known_names[n][i].id : HTTP1_OTHER;
    }
    return HTTP1_OTHER;
}

#define BIT(id) (1u << (id))
#define HOPS                                                                                       \
    (BIT(HTTP1_CONTENT_LENGTH) | BIT(HTTP1_TRANSFER_ENCODING) | BIT(HTTP1_CONNECTION) |            \
     BIT(HTTP1_KEEP_ALIVE) | BIT(HTTP1_PROXY_CONNECTION) | BIT(HTTP1_TE) | BIT(HTTP1_UPGRADE))

/* ---- one head ----------------------------------------------------------------------------- */

enum kind { REQUEST, RESPONSE, TRAILERS };

/* What is known while a head is read; the slices end up in head. */
struct scan {
    const char *at, *end;
    enum kind kind;
    enum http1_method to; /* of the request that a response answers */
    size_t uri;           /* most bytes of a target */
    struct http1_head *head;
    struct http1_fault fault;
    struct str authority; /* of an absolute-form target; p is NULL with other forms */
    uint32_t seen;        /* BIT(enum http1_name) of the fields so far */
    bool close, persist;  /* Connection lists close, keep-alive */
    bool names;           /* Connection lists others */
    unsigned options;     /* in all Connection fields */
};

static enum http1_verdict bad(struct scan *s, enum end_reason end, const char *rule)
{
    s->fault.end = s->kind == REQUEST ? end : END_SERVER_GARBAGE;
    s->fault.rule = rule;
    return HTTP1_BAD;
}

static enum http1_verdict refuse(struct scan *s, const char *rule)
{
    return bad(s, END_BAD_REQUEST, rule);
}

/* CRLF at p, and nothing else that some parser takes for a line end (RFC 9112 2.2). */
static enum http1_verdict read_crlf(struct scan *s, const char *p, const char *otherwise)
{
    if (p == s->end)
        return HTTP1_PARTIAL;
    if (*p == '\n')
        return refuse(s, "a line ends with a bare LF");
    if (*p != '\r')
        return refuse(s, otherwise);
    if (p + 1 == s->end)
        return HTTP1_PARTIAL;
    if (p[1] != '\n')
        return refuse(s, "a CR without LF");
    s->at = p + 2;
    return HTTP1_OK;
}

/* Both kinds of head carry the version; after it in a request comes CRLF, in a response SP. */
static enum http1_verdict read_version(struct scan *s)
{
    static const char form[] = "HTTP/1.";
    static const char wrong[] = "the HTTP version is missing or malformed";
    const char *p = s->at;
    for (size_t i = 0; i < sizeof form - 1; i++, p++) {
        if (p == s->end)
            return HTTP1_PARTIAL;
        if (*p != form[i] && form[i] == '1' && is(*p, DIGIT))
            return bad(s, END_VERSION, "only HTTP/1.0 and HTTP/1.1 are spoken here");
        if (*p != form[i])
            return refuse(s, wrong);
    }
    if (p == s->end)
        return HTTP1_PARTIAL;
    if (!is(*p, DIGIT))
        return refuse(s, wrong);
    s->head->minor = *p > '0';
    s->at = p + 1;
    return HTTP1_OK;
}

/* ---- request line ------------------------------------------------------------------------- */

static enum http1_method method_id(struct str m)
{
    static const struct str known[] = {
        [HTTP1_GET] = {"GET", 3},        [HTTP1_HEAD] = {"HEAD", 4},
        [HTTP1_POST] = {"POST", 4},      [HTTP1_PUT] = {"PUT", 3},
        [HTTP1_PATCH] = {"PATCH", 5},    [HTTP1_DELETE] = {"DELETE", 6},
        [HTTP1_OPTIONS] = {"OPTIONS", 7}};
    for (unsigned i = 0; i < COUNT_OF(known); i++)
        if (str_eq(m, known[i]))
            return (enum http1_method)i;
    return HTTP1_METHOD_OTHER;
}

/* uri-host [ ":" port ] (RFC 9110 7.2); an empty host names no http resource (4.2.1). */
static bool host_ok(struct str s)
{
    const char *p = s.p, *end = s.p + s.n;
    const char *host = p;
    if (p < end && *p == '[') {
        p++;
        while (p < end && (is(*p, HEX) || *p == ':' || *p == '.'))
            p++;
        if (p == host + 1 || p == end || *p != ']')
            return false;
        p++;
    } else {
        for (;; p += 3) {
            p = skip(p, end, REGNAME);
            if (end - p < 3 || *p != '%' || !is(p[1], HEX) || !is(p[2], HEX))
                break;
        }
    }
    if (p == host)
        return false;
    if (p == end)
        return true;
    uint64_t port = 0;
    struct str digits = {p + 1, (size_t)(end - p - 1)};
    return *p == ':' && (digits.n == 0 || (read_length(digits, &port) && port <= 65535));
}

static bool starts_nocase(struct str s, struct str with)
{
    return s.n >= with.n && str_eq_nocase((struct str){s.p, with.n}, with);
}

/* Turns an absolute-form target into what an origin server is sent (RFC 9112 3.2.1, 3.2.4). */
static enum http1_verdict absolute_form(struct scan *s)
{
    struct http1_head *head = s->head;
    struct str t = head->target;
    size_t scheme = starts_nocase(t, STR("http://"))    ? 7
                    : starts_nocase(t, STR("https://")) ? 8
                                                        : 0;
    if (scheme == 0)
        return refuse(s, "the request target is neither a path nor an http URL");
    const char *p = t.p + scheme, *end = t.p + t.n;
    while (p < end && *p != '/' && *p != '?')
        p++;
    s->authority = (struct str){t.p + scheme, (size_t)(p - t.p) - scheme};
    if (!host_ok(s->authority))
        return refuse(s, "the URL in the request line has no plain host[:port]");
    if (p == end)
        head->target = head->method == HTTP1_OPTIONS ? STR("*") : STR("/");
    else if (*p == '?')
        return refuse(s, "the URL in the request line has a query without a path");
    else
        head->target = (struct str){p, (size_t)(end - p)};
    return HTTP1_OK;
}

static enum http1_verdict split_target(struct scan *s)
{
    struct http1_head *head = s->head;
    if (head->target.p[0] != '/') {
        if (head->target.n != 1 || head->target.p[0] != '*') {
            enum http1_verdict v = absolute_form(s);
            if (v != HTTP1_OK)
                return v;
        } else if (head->method != HTTP1_OPTIONS) {
            return refuse(s, "the request target * is for OPTIONS only");
        }
    }
    struct str t = head->target;
    const char *mark = memchr(t.p, '?', t.n);
    head->path = mark ? (struct str){t.p, (size_t)(mark - t.p)} : t;
    head->query =
        mark ? (struct str){mark + 1, (size_t)(t.p + t.n - mark - 1)} : (struct str){NULL, 0};
    return HTTP1_OK;
}

static enum http1_verdict read_request_line(struct scan *s)
{
    for (int lines = 0; s->at < s->end && (*s->at == '\r' || *s->at == '\n'); lines++) {
        if (lines == 2)
            return refuse(s, "more than two empty lines before the request");
        enum http1_verdict v = read_crlf(s, s->at, "");
        if (v != HTTP1_OK)
            return v;
    }
    const char *p = skip(s->at, s->end, TOKEN);
    s->head->method_text = (struct str){s->at, (size_t)(p - s->at)};
    if (p == s->end)
        return HTTP1_PARTIAL;
    if (*p != ' ' || p == s->at)
        return refuse(s, "the request line does not begin with a method and one space");
    s->head->method = method_id(s->head->method_text);

    const char *target = ++p;
    p = skip(p, s->end, TARGET);
    s->head->target = (struct str){target, (size_t)(p - target)};
    if (s->head->target.n > s->uri)
        return bad(s, END_URI_TOO_LONG, "the request target is too long");
    if (p == s->end)
        return HTTP1_PARTIAL;
    if (*p == '\r' || *p == '\n')
        return refuse(s, "the HTTP version is missing or malformed");
    if (*p != ' ')
        return refuse(s, "a byte in the request target that a URI may not have");
    if (p == target)
        return refuse(s, "two spaces in the request line");
    s->at = p + 1;

    enum http1_verdict v = read_version(s);
    if (v == HTTP1_OK)
        v = read_crlf(s, s->at, "the request line does not end with the HTTP version");
    return v == HTTP1_OK ? split_target(s) : v;
}

/* ---- status line -------------------------------------------------------------------------- */

static enum http1_verdict read_status_line(struct scan *s)
{
    enum http1_verdict v = read_version(s);
    if (v != HTTP1_OK)
        return v;
    const char *p = s->at;
    int status = 0;
    for (int i = 0; i < 4; i++, p++) {
        if (p == s->end)
            return HTTP1_PARTIAL;
        if (i == 0 ? *p != ' ' : !is(*p, DIGIT))
            return refuse(s, "the status line has no three-digit status");
        if (i == 1 && (*p < '1' || *p > '5'))
            return refuse(s, "the status is not in 100 to 599");
        status = i == 0 ? 0 : status * 10 + (*p - '0');
    }
    s->head->status = status;
    /* The space before an empty reason is missing in many servers' answers. */
    if (p < s->end && *p == ' ')
        p++;
    else if (p < s->end && *p != '\r' && *p != '\n')
        return refuse(s, "the status line has no three-digit status");
    const char *reason = p;
    p = skip_value(p, s->end);
    s->head->reason = (struct str){reason, (size_t)(p - reason)};
    return read_crlf(s, p, "a control byte in the reason phrase");
}

/* ---- fields ------------------------------------------------------------------------------- */

/* The number of options is bounded, because each is compared with each field in the end. */
static enum http1_verdict note_connection(struct scan *s, struct str list)
{
    struct str option;
    while (list_next(&list, &option)) {
        if (option.n == 0)
            continue;
        if (++s->options > HTTP1_OPTIONS_MAX)
            return refuse(s, "too many options in Connection");
        if (str_eq_nocase(option, STR("close")))
            s->close = true;
        else if (str_eq_nocase(option, STR("keep-alive")))
            s->persist = true;
        else
            s->names = true;
    }
    return HTTP1_OK;
}

/* A field that says something about framing or the connection. */
static enum http1_verdict note_field(struct scan *s, const struct http1_field *f)
{
    struct http1_head *head = s->head;
    bool again = s->seen & BIT(f->id);
    s->seen |= BIT(f->id);
    if (f->id == HTTP1_CONTENT_LENGTH) {
        uint64_t length;
        if (!read_length(f->value, &length))
            return refuse(s, "Content-Length is not one decimal number below 2^63");
        if (again && length != head->length)
            return refuse(s, "two Content-Length fields that differ");
        head->length = length;
    } else if (f->id == HTTP1_TRANSFER_ENCODING) {
        if (again || !str_eq_nocase(f->value, STR("chunked")))
            return refuse(s, "Transfer-Encoding is not a single `chunked`");
        if (head->minor == 0)
            return refuse(s, "Transfer-Encoding with HTTP/1.0");
    } else if (f->id == HTTP1_CONNECTION) {
        return note_connection(s, f->value);
    } else if (s->kind != REQUEST) {
        return HTTP1_OK;
    } else if (f->id == HTTP1_HOST) {
        if (again)
            return refuse(s, "more than one Host field");
        if (!host_ok(f->value))
            return refuse(s, "Host is not host[:port]");
        head->host = f->value;
    } else if (f->id == HTTP1_EXPECT) {
        if (!str_eq_nocase(f->value, STR("100-continue")))
            return bad(s, END_EXPECTATION, "Expect is not 100-continue");
        head->expect_continue = head->minor > 0;
    } else if (f->id == HTTP1_TE) {
        struct str list = f->value, coding;
        while (list_next(&list, &coding))
            head->te_trailers |= str_eq_nocase(coding, STR("trailers"));
    }
    if ((s->seen & BIT(HTTP1_CONTENT_LENGTH)) && (s->seen & BIT(HTTP1_TRANSFER_ENCODING)))
        return refuse(s, "Content-Length together with Transfer-Encoding");
    return HTTP1_OK;
}

static const char *name_rule(const struct scan *s, const char *p)
{
    if (p > s->at)
        return *p == ' ' || *p == '\t'    ? "white space before the colon of a field"
               : *p == '\r' || *p == '\n' ? "a field without a colon"
                                          : "a byte in a field name that is not allowed there";
    if (*p == ' ' || *p == '\t')
        return s->head->count ? "a folded field (obs-fold)" : "white space before the first field";
    return *p == ':'    ? "a field without a name"
           : *p == '\n' ? "a line ends with a bare LF"
                        : "a byte in a field name that is not allowed there";
}

static enum http1_verdict read_field(struct scan *s, struct http1_field *f)
{
    const char *p = skip(s->at, s->end, TOKEN);
    if (p == s->end)
        return HTTP1_PARTIAL;
    if (*p != ':' || p == s->at)
        return refuse(s, name_rule(s, p));
    f->name = (struct str){s->at, (size_t)(p - s->at)};
    const char *value = skip_blank(p + 1, s->end);
    p = skip_value(value, s->end);
    enum http1_verdict v = read_crlf(s, p, "a control byte in a field value");
    if (v != HTTP1_OK)
        return v;
    f->value = trim(value, p);
    f->id = name_id(f->name.p, f->name.n);
    f->hop = (HOPS >> f->id) & 1;
    return HTTP1_OK;
}

/* Fields up to and with the blank line. */
static enum http1_verdict read_fields(struct scan *s)
{
    struct http1_head *head = s->head;
    enum http1_verdict v;
    head->count = 0;
    for (;;) {
        if (s->at == s->end)
            return HTTP1_PARTIAL;
        if (*s->at == '\r')
            return read_crlf(s, s->at, "");
        if (head->count == HTTP1_FIELDS_MAX)
            return bad(s, END_HEAD_TOO_BIG, "too many fields");
        struct http1_field *f = &head->field[head->count];
        v = read_field(s, f);
        if (v == HTTP1_OK && s->kind != TRAILERS && f->id != HTTP1_OTHER)
            v = note_field(s, f);
        if (v != HTTP1_OK)
            return v;
        head->count++;
    }
}

/* ---- the end of a head -------------------------------------------------------------------- */

/* Marks what Connection names. Not Host: without it the next hop must refuse the request, so
 * naming it could only be meant to break something. */
static void mark_named(struct http1_head *head)
{
    for (unsigned i = 0; i < head->count; i++) {
        if (head->field[i].id != HTTP1_CONNECTION)
            continue;
        struct str list = head->field[i].value, option;
        while (list_next(&list, &option))
            for (unsigned j = 0; option.n > 0 && j < head->count; j++) {
                struct http1_field *f = &head->field[j];
                if (f->name.n == option.n && f->id != HTTP1_HOST && str_eq_nocase(f->name, option))
                    f->hop = true;
            }
    }
}

static void finish_connection(struct scan *s)
{
    s->head->keep_alive = !s->close && (s->head->minor > 0 || s->persist);
    if (s->names)
        mark_named(s->head);
}

static enum http1_framing framing_of(const struct scan *s, enum http1_framing otherwise)
{
    return s->seen & BIT(HTTP1_TRANSFER_ENCODING) ? HTTP1_CHUNKED
           : s->seen & BIT(HTTP1_CONTENT_LENGTH)  ? HTTP1_LENGTH
                                                  : otherwise;
}

static enum http1_verdict finish_request(struct scan *s)
{
    struct http1_head *head = s->head;
    if (!head->host.p && head->minor > 0)
        return refuse(s, "HTTP/1.1 without Host");
    if (s->authority.p) {
        if (head->host.p && !str_eq_nocase(head->host, s->authority))
            return refuse(s, "the URL in the request line and Host name different hosts");
        head->host = s->authority;
    }
    head->framing = framing_of(s, HTTP1_NO_BODY);
    finish_connection(s);
    return HTTP1_OK;
}

/* RFC 9112 6.3. */
static enum http1_verdict finish_response(struct scan *s)
{
    struct http1_head *head = s->head;
    head->framing = framing_of(s, HTTP1_UNTIL_CLOSE);
    finish_connection(s);
    if (head->status < 200 || head->status == 204 || head->status == 304 || s->to == HTTP1_HEAD)
        head->framing = HTTP1_NO_BODY;
    else if (head->framing == HTTP1_UNTIL_CLOSE)
        head->keep_alive = false;
    return HTTP1_OK;
}

/* Bytes behind the limit are not looked at; a head that would need them is too big. */
static enum http1_verdict read_head(struct scan *s, const char *p, size_t n, size_t limit,
                                    size_t *consumed)
{
    enum http1_verdict v = HTTP1_OK;
    s->at = p;
    s->end = p + (n < limit ? n : limit);
    if (s->kind != TRAILERS) {
        /* All but the fields, which count covers. */
        memset(s->head, 0, offsetof(struct http1_head, field));
        v = s->kind == REQUEST ? read_request_line(s) : read_status_line(s);
    }
    if (v == HTTP1_OK)
        v = read_fields(s);
    if (v == HTTP1_OK && s->kind != TRAILERS)
        v = s->kind == REQUEST ? finish_request(s) : finish_response(s);
    if (v == HTTP1_PARTIAL && n >= limit)
        v = bad(s, END_HEAD_TOO_BIG,
                s->kind == TRAILERS ? "the trailers are too big" : "the head is too big");
    *consumed = v == HTTP1_OK ? (size_t)(s->at - p) : 0;
    return v;
}

enum http1_verdict http1_parse_request(const char *p, size_t n, const struct http1_limits *limits,
                                       struct http1_head *head, size_t *consumed,
                                       struct http1_fault *fault)
{
    struct scan s = {.kind = REQUEST, .uri = limits->uri, .head = head};
    enum http1_verdict v = read_head(&s, p, n, limits->head, consumed);
    *fault = s.fault;
    return v;
}

enum http1_verdict http1_parse_response(const char *p, size_t n, const struct http1_limits *limits,
                                        enum http1_method to, struct http1_head *head,
                                        size_t *consumed, struct http1_fault *fault)
{
    struct scan s = {.kind = RESPONSE, .to = to, .head = head};
    enum http1_verdict v = read_head(&s, p, n, limits->head, consumed);
    *fault = s.fault;
    return v;
}

/* ---- trailers ----------------------------------------------------------------------------- */

/* RFC 9110 6.5.1: what framing, routing, authentication, conditions and content hang on. Behind a
 * body nobody looks for these, so one that arrives there is an attempt or an error. */
static bool not_a_trailer(const struct http1_field *f)
{
    static const char *const names[] = {
        "age",        "authorization",    "cache-control", "cookie",     "expires",
        "forwarded",  "location",         "max-forwards",  "pragma",     "range",
        "set-cookie", "www-authenticate", "vary",          "warning",    "x-chroma-token",
        "x-real-ip",  "accept-ranges",    "allow",         "retry-after"};
    static const struct str families[] = {
        {"content-", 8}, {"if-", 3}, {"proxy-", 6}, {"x-forwarded-", 12}, {"access-control-", 15}};
    if (f->id != HTTP1_OTHER)
        return true;
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (str_eq_nocase(f->name, str_from(names[i])))
            return true;
    for (size_t i = 0; i < COUNT_OF(families); i++)
        if (starts_nocase(f->name, families[i]))
            return true;
    return false;
}

enum http1_verdict http1_parse_trailers(const char *p, size_t n, size_t limit,
                                        struct http1_head *head, size_t *consumed,
                                        const char **rule)
{
    struct scan s = {.kind = TRAILERS, .head = head};
    enum http1_verdict v = read_head(&s, p, n, limit, consumed);
    for (unsigned i = 0; v == HTTP1_OK && i < head->count; i++)
        head->field[i].hop = not_a_trailer(&head->field[i]);
    *rule = s.fault.rule;
    return v;
}

/* ---- writing ------------------------------------------------------------------------------ */

/* Whether the bytes from f's name to its value already read "Name: value". */
static bool canonical(const struct http1_field *f)
{
    const char *colon = f->name.p + f->name.n;
    return f->value.p == colon + 2 && colon[0] == ':' && colon[1] == ' ';
}

/* Fields that lie behind one another as they would be written go out in one piece. */
void http1_put_fields(struct buf *out, const struct http1_head *head)
{
    for (unsigned i = 0; i < head->count; i++) {
        const struct http1_field *f = &head->field[i];
        if (f->hop)
            continue;
        if (!canonical(f)) {
            buf_put_str(out, f->name);
            buf_put(out, ": ", 2);
            buf_put_str(out, f->value);
            buf_put(out, "\r\n", 2);
            continue;
        }
        const char *start = f->name.p, *end = f->value.p + f->value.n;
        while (i + 1 < head->count) {
            const struct http1_field *next = f + 1;
            if (next->hop || next->name.p != end + 2 || memcmp(end, "\r\n", 2) != 0 ||
                !canonical(next))
                break;
            f = next;
            end = f->value.p + f->value.n;
            i++;
        }
        buf_put(out, start, (size_t)(end - start));
        buf_put(out, "\r\n", 2);
    }
}

void http1_put_framing(struct buf *out, enum http1_framing framing, uint64_t length)
{
    if (framing == HTTP1_LENGTH) {
        buf_put_str(out, STR("Content-Length: "));
        buf_put_uint(out, length);
        buf_put(out, "\r\n", 2);
    } else if (framing == HTTP1_CHUNKED) {
        buf_put_str(out, STR("Transfer-Encoding: chunked\r\n"));
    }
}

size_t http1_chunk_head(char out[HTTP1_CHUNK_HEAD], uint64_t length)
{
    size_t digits = 1, n;
    for (uint64_t rest = length >> 4; rest; rest >>= 4)
        digits++;
    for (n = digits; n > 0; length >>= 4)
        out[--n] = "0123456789abcdef"[length & 15];
    memcpy(out + digits, "\r\n", 2);
    return digits + 2;
}

/* RFC 9110 15, with 428, 429 and 431 of RFC 6585. */
const char *http1_method_name(enum http1_method m)
{
    static const char *const names[] = {"GET",   "HEAD",   "POST",    "PUT",
                                        "PATCH", "DELETE", "OPTIONS", "OTHER"};
    return names[m];
}

const char *http1_reason(int status)
{
    static const char *const known[][32] = {
        {"Continue", "Switching Protocols"},
        {"OK", "Created", "Accepted", "Non-Authoritative Information", "No Content",
         "Reset Content", "Partial Content"},
        {"Multiple Choices", "Moved Permanently", "Found", "See Other", "Not Modified", "Use Proxy",
         NULL, "Temporary Redirect", "Permanent Redirect"},
        {"Bad Request",
         "Unauthorized",
         "Payment Required",
         "Forbidden",
         "Not Found",
         "Method Not Allowed",
         "Not Acceptable",
         "Proxy Authentication Required",
         "Request Timeout",
         "Conflict",
         "Gone",
         "Length Required",
         "Precondition Failed",
         "Content Too Large",
         "URI Too Long",
         "Unsupported Media Type",
         "Range Not Satisfiable",
         "Expectation Failed",
         NULL,
         NULL,
         NULL,
         "Misdirected Request",
         "Unprocessable Content",
         NULL,
         NULL,
         NULL,
         "Upgrade Required",
         NULL,
         "Precondition Required",
         "Too Many Requests",
         NULL,
         "Request Header Fields Too Large"},
        {"Internal Server Error", "Not Implemented", "Bad Gateway", "Service Unavailable",
         "Gateway Timeout", "HTTP Version Not Supported"}};
    if (status < 100 || status > 599 || status % 100 > 31)
        return "";
    const char *reason = known[status / 100 - 1][status % 100];
    return reason ? reason : "";
}

const struct http1_field *http1_find(const struct http1_head *head, enum http1_name id)
{
    for (unsigned i = 0; i < head->count; i++)
        if (head->field[i].id == id)
            return &head->field[i];
    return NULL;
}
