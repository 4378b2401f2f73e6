/* llhttp_oracle.c: llhttp's callbacks, gathered into text that can be compared. */
#include "llhttp_oracle.h"

#include <llhttp.h>

enum { ORACLE_MAX = 1 << 20 };

void oracle_init(struct oracle *o)
{
    *o = (struct oracle){0};
    buf_init(&o->start, ORACLE_MAX);
    buf_init(&o->fields, ORACLE_MAX);
    buf_init(&o->body, ORACLE_MAX);
}

void oracle_fini(struct oracle *o)
{
    buf_fini(&o->start);
    buf_fini(&o->fields);
    buf_fini(&o->body);
}

static struct oracle *of(llhttp_t *parser)
{
    return parser->data;
}

static int on_url(llhttp_t *parser, const char *at, size_t n)
{
    struct oracle *o = of(parser);
    /* A span may come in pieces; the method is known before the first. */
    if (buf_len(&o->start) == 0 || buf_data(&o->start)[buf_len(&o->start) - 1] == '\n')
        buf_printf(&o->start, "%s ", llhttp_method_name(llhttp_get_method(parser)));
    buf_put(&o->start, at, n);
    return 0;
}

static int on_url_complete(llhttp_t *parser)
{
    buf_puts(&of(parser)->start, "\n");
    return 0;
}

static int on_name(llhttp_t *parser, const char *at, size_t n)
{
    buf_put(&of(parser)->fields, at, n);
    return 0;
}

static int on_name_complete(llhttp_t *parser)
{
    buf_puts(&of(parser)->fields, "=");
    return 0;
}

static int on_value(llhttp_t *parser, const char *at, size_t n)
{
    buf_put(&of(parser)->fields, at, n);
    return 0;
}

static int on_value_complete(llhttp_t *parser)
{
    buf_puts(&of(parser)->fields, "\n");
    return 0;
}

static int on_head(llhttp_t *parser)
{
    struct oracle *o = of(parser);
    o->heads++;
    o->chunked = parser->flags & F_CHUNKED;
    o->length = parser->content_length;
    return 0;
}

static int on_body(llhttp_t *parser, const char *at, size_t n)
{
    buf_put(&of(parser)->body, at, n);
    return 0;
}

static int on_message(llhttp_t *parser)
{
    struct oracle *o = of(parser);
    o->messages++;
    buf_puts(&o->fields, "\n");
    return 0;
}

void oracle_requests(struct oracle *o, const char *p, size_t n)
{
    llhttp_t parser;
    llhttp_settings_t settings;
    llhttp_settings_init(&settings);
    settings.on_url = on_url;
    settings.on_url_complete = on_url_complete;
    settings.on_header_field = on_name;
    settings.on_header_field_complete = on_name_complete;
    settings.on_header_value = on_value;
    settings.on_header_value_complete = on_value_complete;
    settings.on_headers_complete = on_head;
    settings.on_body = on_body;
    settings.on_message_complete = on_message;
    llhttp_init(&parser, HTTP_REQUEST, &settings);
    parser.data = o;
    llhttp_errno_t rc = llhttp_execute(&parser, p, n);
    o->error = rc == HPE_OK ? NULL : llhttp_get_error_reason(&parser);
}
