/* body.c: each step takes what one piece of input allows; body_take() repeats them within the
 * bounds. */
#include "body.h"

void body_init(struct body *b, enum http1_framing framing, uint64_t length, size_t keep)
{
    *b = (struct body){.framing = framing, .length = framing == HTTP1_LENGTH ? length : 0};
    buf_init(&b->bytes, keep);
    buf_init(&b->trailers, 4u << 20);
    b->done = framing == HTTP1_NO_BODY || (framing == HTTP1_LENGTH && length == 0);
    if (framing == HTTP1_CHUNKED)
        http1_chunks_init(&b->chunks);
}

void body_fini(struct body *b)
{
    buf_fini(&b->bytes);
    buf_fini(&b->trailers);
}

void body_keep(struct body *b, size_t keep)
{
    must(keep >= buf_len(&b->bytes) && keep > 0 && keep <= 1u << 30);
    b->bytes.cap = (uint32_t)keep;
}

static void take_plain(struct body *b, struct buf *in)
{
    size_t n = buf_len(in), room = buf_room(&b->bytes);
    n = n < room ? n : room;
    if (n > b->length - b->seen)
        n = (size_t)(b->length - b->seen);
    buf_put(&b->bytes, buf_data(in), n);
    buf_consume(in, n);
    b->seen += n;
    b->done = b->seen == b->length;
}

/* Sets *stop when more bytes must come first. */
static enum end_reason take_trailers(struct body *b, struct buf *in, size_t limit, bool *stop,
                                     const char **rule)
{
    static struct http1_head fields; /* big; only within this call */
    size_t used = 0;
    enum http1_verdict v =
        http1_parse_trailers(buf_data(in), buf_len(in), limit, &fields, &used, rule);
    if (v == HTTP1_BAD)
        return END_BAD_REQUEST;
    *stop = true;
    if (v == HTTP1_OK) {
        http1_put_fields(&b->trailers, &fields);
        buf_consume(in, used);
        b->done = true;
    }
    return END_NONE;
}

static enum end_reason take_chunked(struct body *b, struct buf *in, uint64_t most,
                                    const char **rule)
{
    size_t n = buf_len(in), room = buf_room(&b->bytes), used = 0;
    struct str data = {NULL, 0};
    enum http1_step step =
        http1_chunks_next(&b->chunks, buf_data(in), n < room ? n : room, &used, &data, rule);
    if (step == HTTP1_STEP_BAD)
        return END_BAD_REQUEST;
    if (step == HTTP1_DATA) {
        buf_put_str(&b->bytes, data);
        b->seen += data.n;
    }
    buf_consume(in, used);
    b->in_trailers = step == HTTP1_LAST;
    if (b->seen <= most)
        return END_NONE;
    *rule = "the request body is larger than MAX_BODY_BYTES";
    return END_BODY_TOO_BIG;
}

enum end_reason body_take(struct body *b, struct buf *in, const struct body_limits *limits,
                          const char **rule)
{
    enum end_reason bad = END_NONE;
    bool stop = false;
    while (!b->done && !stop && bad == END_NONE && buf_len(in) > 0 && buf_room(&b->bytes) > 0) {
        if (b->in_trailers)
            bad = take_trailers(b, in, limits->head, &stop, rule);
        else if (b->framing == HTTP1_CHUNKED)
            bad = take_chunked(b, in, limits->bytes, rule);
        else
            take_plain(b, in);
    }
    return bad;
}
