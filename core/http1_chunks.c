/* http1_chunks.c: the chunked coding, read byte by byte where it is a line and in one piece where
 * it is data; the state between calls is all that is kept. */
#include "http1_chunks.h"

#include "http1_bytes.h"

enum chunk_state {
    SIZE, /* the first state: chunks_init is all zeros */
    EXT_NAME,
    EXT_NAME_MORE,
    EXT_VALUE,
    EXT_VALUE_MORE,
    EXT_QUOTED,
    EXT_ESCAPED,
    EXT_CLOSED,
    SIZE_LF,
    DATA,
    DATA_CR,
    DATA_LF,
    LAST,
    REFUSED
};

enum { CHUNK_LINE_MAX = 256 };

void http1_chunks_init(struct http1_chunks *c)
{
    *c = (struct http1_chunks){0};
}

/* One byte of the size line up to its CR; NULL or the rule that it breaks. */
static const char *chunk_line(struct http1_chunks *c, char ch)
{
    static const char no_name[] = "a chunk extension without a proper name";
    static const char no_value[] = "a chunk extension without a proper value";
    static const char control[] = "a control byte in a chunk extension";
    static const struct {
        uint8_t class, next; /* which bytes go on, and to where */
        bool ends;           /* the line, or this extension, may end here */
        const char *rule;    /* what any other byte breaks */
    } states[] = {
        [SIZE] = {HEX, SIZE, true, "a chunk size that is not plain hexadecimal digits"},
        [EXT_NAME] = {TOKEN, EXT_NAME_MORE, false, no_name},
        [EXT_NAME_MORE] = {TOKEN, EXT_NAME_MORE, true, no_name},
        [EXT_VALUE] = {TOKEN, EXT_VALUE_MORE, false, no_value},
        [EXT_VALUE_MORE] = {TOKEN, EXT_VALUE_MORE, true, no_value},
        [EXT_QUOTED] = {VALUE, EXT_QUOTED, false, control},
        [EXT_ESCAPED] = {VALUE, EXT_QUOTED, false, control},
        [EXT_CLOSED] = {0, EXT_CLOSED, true, no_value},
    };
    unsigned at = c->state;
    bool ends = states[at].ends && c->digits > 0;
    if (ends && ch == '\r') {
        c->state = SIZE_LF;
        return NULL;
    }
    if (++c->line > CHUNK_LINE_MAX)
        return "the line of a chunk size is too long";
    if (ends && ch == ';')
        c->state = EXT_NAME;
    else if (at == EXT_NAME_MORE && ch == '=')
        c->state = EXT_VALUE;
    else if (at == EXT_VALUE && ch == '"')
        c->state = EXT_QUOTED;
    else if (at == EXT_QUOTED && (ch == '"' || ch == '\\'))
        c->state = ch == '"' ? EXT_CLOSED : EXT_ESCAPED;
    else if (!is(ch, states[at].class))
        return states[at].rule;
    else if (at != SIZE)
        c->state = states[at].next;
    else if (c->left > (uint64_t)INT64_MAX >> 4)
        return "a chunk size of 2^63 or more";
    else {
        c->left = c->left << 4 | (unsigned)(is(ch, DIGIT) ? ch - '0' : (ch | 0x20) - 'a' + 10);
        c->digits = 1;
    }
    return NULL;
}

enum http1_step http1_chunks_next(struct http1_chunks *c, const char *p, size_t n, size_t *consumed,
                                  struct str *data, const char **rule)
{
    const char *wrong = c->state == REFUSED ? "an earlier chunk was refused" : NULL;
    size_t i = 0;
    *data = (struct str){NULL, 0};
    *rule = NULL;
    while (i < n && !wrong && c->state != LAST) {
        char ch = p[i];
        if (c->state == DATA) {
            *data = (struct str){p + i, c->left < n - i ? (size_t)c->left : n - i};
            c->left -= data->n;
            c->state = c->left ? DATA : DATA_CR;
            *consumed = i + data->n;
            return HTTP1_DATA;
        }
        if (c->state < SIZE_LF) {
            wrong = chunk_line(c, ch);
        } else if (ch != (c->state == DATA_CR ? '\r' : '\n')) {
            wrong = c->state == SIZE_LF ? "a CR without LF behind a chunk size"
                                        : "chunk data is not followed by CRLF";
        } else if (c->state == SIZE_LF) {
            c->state = c->left ? DATA : LAST;
        } else if (c->state == DATA_CR) {
            c->state = DATA_LF;
        } else {
            http1_chunks_init(c);
        }
        i++;
    }
    *consumed = i;
    if (wrong) {
        c->state = REFUSED;
        *rule = wrong;
        return HTTP1_STEP_BAD;
    }
    return c->state == LAST ? HTTP1_LAST : HTTP1_MORE;
}
