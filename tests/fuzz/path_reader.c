/* path_reader.c: llhttp's callbacks, gathered into messages. */
#include "path_reader.h"

#include <stdlib.h>

enum { PART_MAX = 4 << 20 };

void messages_clear(struct messages *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        buf_fini(&m->v[i]->start);
        buf_fini(&m->v[i]->fields);
        buf_fini(&m->v[i]->body);
        free(m->v[i]);
    }
    m->n = 0;
}

static struct reader *of(llhttp_t *parser)
{
    return parser->data;
}

static int on_begin(llhttp_t *parser)
{
    struct reader *r = of(parser);
    if (r->waits) {
        r->error = "a second request came before the first was answered";
        return HPE_USER;
    }
    must(r->into->n < MESSAGES_MAX);
    struct message *m = base_zalloc(sizeof *m);
    buf_init(&m->start, PART_MAX);
    buf_init(&m->fields, PART_MAX);
    buf_init(&m->body, PART_MAX);
    m->source = r->source;
    r->open = r->into->v[r->into->n++] = m;
    return 0;
}

static int on_url(llhttp_t *parser, const char *at, size_t n)
{
    struct message *m = of(parser)->open;
    if (buf_len(&m->start) == 0) /* a span may come in pieces */
        buf_printf(&m->start, "%s ", llhttp_method_name(llhttp_get_method(parser)));
    buf_put(&m->start, at, n);
    return 0;
}

static int on_field(llhttp_t *parser, const char *at, size_t n)
{
    buf_put(&of(parser)->open->fields, at, n);
    return 0;
}

static int on_name_complete(llhttp_t *parser)
{
    buf_puts(&of(parser)->open->fields, "=");
    return 0;
}

static int on_value_complete(llhttp_t *parser)
{
    buf_puts(&of(parser)->open->fields, "\n");
    of(parser)->open->field_count++;
    return 0;
}

/* 1: no body follows, whatever the fields say. */
static int on_head(llhttp_t *parser)
{
    struct reader *r = of(parser);
    if (parser->type == HTTP_REQUEST)
        return 0;
    r->open->status = parser->status_code;
    if (r->open->status < 200)
        return 0;
    bool to_head = r->bodiless && r->bodiless[r->finals++];
    return to_head || r->open->status == 204 || r->open->status == 304; /* RFC 9112 6.3 */
}

static int on_body(llhttp_t *parser, const char *at, size_t n)
{
    buf_put(&of(parser)->open->body, at, n);
    return 0;
}

static int on_complete(llhttp_t *parser)
{
    struct reader *r = of(parser);
    r->open->complete = true;
    r->open = NULL;
    r->waits = parser->type == HTTP_REQUEST;
    return 0;
}

void reader_init(struct reader *r, bool responses, struct messages *into, unsigned source)
{
    *r = (struct reader){.into = into, .source = source};
    llhttp_settings_init(&r->settings);
    r->settings.on_message_begin = on_begin;
    r->settings.on_url = on_url;
    r->settings.on_header_field = on_field;
    r->settings.on_header_field_complete = on_name_complete;
    r->settings.on_header_value = on_field;
    r->settings.on_header_value_complete = on_value_complete;
    r->settings.on_headers_complete = on_head;
    r->settings.on_body = on_body;
    r->settings.on_message_complete = on_complete;
    llhttp_init(&r->parser, responses ? HTTP_RESPONSE : HTTP_REQUEST, &r->settings);
    r->parser.data = r;
}

void reader_take(struct reader *r, const char *p, size_t n)
{
    if (!r->error && llhttp_execute(&r->parser, p, n) != HPE_OK && !r->error)
        r->error = llhttp_get_error_reason(&r->parser);
}

bool reader_end(struct reader *r)
{
    return llhttp_finish(&r->parser) == HPE_OK && !r->open;
}
