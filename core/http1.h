/* http1.h: HTTP/1.1 heads and bodies as bytes: parse, frame, write. Pure: no I/O, no malloc.
 *
 * Strict on purpose (RFC 9112; the list in each function): what two parsers could read differently
 * is refused, and everything forwarded is written again from the parsed form. Slices in a head
 * point into the bytes that were parsed and live as long as those. */
#ifndef HTTP1_H
#define HTTP1_H

#include "buf.h"
#include "end.h"
#include "http1_chunks.h"

enum { HTTP1_FIELDS_MAX = 100, HTTP1_OPTIONS_MAX = 32 };

enum http1_verdict { HTTP1_OK, HTTP1_PARTIAL, HTTP1_BAD };

enum http1_method {
    HTTP1_GET,
    HTTP1_HEAD,
    HTTP1_POST,
    HTTP1_PUT,
    HTTP1_PATCH,
    HTTP1_DELETE,
    HTTP1_OPTIONS,
    HTTP1_METHOD_OTHER /* a well-formed token that is none of these (CONNECT, TRACE, …) */
};

enum http1_framing {
    HTTP1_NO_BODY,
    HTTP1_LENGTH,
    HTTP1_CHUNKED,
    HTTP1_UNTIL_CLOSE /* responses only */
};

/* Fields that somebody in the core asks about; all others are HTTP1_OTHER. */
enum http1_name {
    HTTP1_OTHER,
    HTTP1_HOST,
    HTTP1_CONTENT_LENGTH,
    HTTP1_TRANSFER_ENCODING,
    HTTP1_CONNECTION,
    HTTP1_KEEP_ALIVE,
    HTTP1_PROXY_CONNECTION,
    HTTP1_TE,
    HTTP1_TRAILER,
    HTTP1_UPGRADE,
    HTTP1_EXPECT,
    HTTP1_VIA,
    HTTP1_X_FORWARDED_FOR,
    HTTP1_X_FORWARDED_PROTO,
    HTTP1_X_FORWARDED_HOST,
    HTTP1_X_REQUEST_ID,
    HTTP1_CONTENT_TYPE,
    HTTP1_RETRY_AFTER,
    HTTP1_DATE
};

struct http1_field {
    struct str name, value; /* value without the white space around it */
    uint8_t id;             /* enum http1_name */
    bool hop;               /* hop-by-hop: must not be forwarded (RFC 9110 7.6.1), which covers the
                               fixed list, Content-Length and Transfer-Encoding (framing is written
                               anew) and every name that Connection lists but Host. TE is hop;
                               te_trailers below says whether to write `TE: trailers` again. */
};

struct http1_head {
    enum http1_method method;
    struct str method_text;
    struct str
        target; /* as sent, or the origin-form part of an absolute-form target; "*" for OPTIONS * */
    struct str path;   /* target up to '?' */
    struct str query;  /* after '?', without it; n = 0 when there is none */
    struct str host;   /* value of Host (or authority of an absolute-form target) */
    int minor;         /* 0 or 1: HTTP/1.minor */
    int status;        /* responses */
    struct str reason; /* responses */
    enum http1_framing framing;
    uint64_t length;      /* with HTTP1_LENGTH */
    bool keep_alive;      /* what the sender allows: version and Connection (RFC 9112 9.3) */
    bool expect_continue; /* Expect: 100-continue on an HTTP/1.1 request */
    bool te_trailers;     /* TE lists trailers */
    unsigned count;
    struct http1_field field[HTTP1_FIELDS_MAX];
};

/* What was wrong: the ending it maps to and the rule, as a sentence a client can act on. */
struct http1_fault {
    enum end_reason end; /* END_BAD_REQUEST, _URI_TOO_LONG, _HEAD_TOO_BIG, _VERSION, _EXPECTATION;
                            for responses END_SERVER_GARBAGE */
    const char *rule;    /* static text, e.g. "Content-Length together with Transfer-Encoding" */
};

struct http1_limits {
    size_t head; /* bytes of the whole head, start line included: more is 431 */
    size_t uri;  /* bytes of the target: more is 414 */
};

/* Parses one request head at p. OK: *consumed is its length, blank line included (empty lines
 * before the start line are skipped and counted, at most two: RFC 9112 2.2). PARTIAL: more bytes
 * are needed (limits are already enforced on what is there, so a head of exactly limits->head bytes
 * passes and that many bytes without its end are refused). BAD: *fault says why; the connection
 * must close.
 *
 * Refuses: CL with TE; differing or listed CL; CL that is not digits or over 2^63-1; TE other than
 * a single final `chunked`; TE on HTTP/1.0; bare CR or LF; obs-fold; white space before the colon
 * or before the first field; empty or non-token names; NUL and control bytes (HTAB excepted)
 * anywhere; bytes over 0x7e or spaces in the target; a '#' in the target; no Host on HTTP/1.1,
 * several on any version; Host that is not uri-host[:port] (userinfo, spaces, slashes, empty); an
 * absolute-form target whose authority disagrees with Host or whose query follows no path; other
 * target forms (authority, or asterisk with another method than OPTIONS); other major versions
 * (END_VERSION); Expect other than 100-continue (END_EXPECTATION); more than HTTP1_FIELDS_MAX
 * fields (END_HEAD_TOO_BIG). HTTP/1.x with x > 1 is read as 1.1 (RFC 9110 6.2). */
enum http1_verdict http1_parse_request(const char *p, size_t n, const struct http1_limits *limits,
                                       struct http1_head *head, size_t *consumed,
                                       struct http1_fault *fault) MUST_CHECK;

/* Parses one response head, interim (1xx) or final. `to` is the method of the request it answers:
 * HEAD has no body, nor have 1xx, 204, 304. Same strictness about framing and bytes, and the status
 * is in 100 to 599; an empty reason phrase, even without the space before it, and bytes over 0x7f
 * in values are accepted. */
enum http1_verdict http1_parse_response(const char *p, size_t n, const struct http1_limits *limits,
                                        enum http1_method to, struct http1_head *head,
                                        size_t *consumed, struct http1_fault *fault) MUST_CHECK;

/* Parses the trailer section (fields and a blank line) at p into head->field/count (only those are
 * set). Fields that may not be trailers (framing, routing, authentication, content; RFC 9110 6.5.1)
 * get hop = true, so that a forwarder drops them. */
enum http1_verdict http1_parse_trailers(const char *p, size_t n, size_t limit,
                                        struct http1_head *head, size_t *consumed,
                                        const char **rule) MUST_CHECK;

/* Appends every field that is not hop-by-hop as "Name: value\r\n". */
void http1_put_fields(struct buf *out, const struct http1_head *head);
/* Appends the framing field: Content-Length, Transfer-Encoding: chunked, or nothing. */
void http1_put_framing(struct buf *out, enum http1_framing framing, uint64_t length);
/* Writes one chunk header ("1a2b\r\n") and returns its length; the data and "\r\n" follow it. */
enum { HTTP1_CHUNK_HEAD = 18 };
size_t http1_chunk_head(char out[HTTP1_CHUNK_HEAD], uint64_t length);
/* "GET" and so on; "OTHER" for HTTP1_METHOD_OTHER. */
const char *http1_method_name(enum http1_method m);
/* The standard reason phrase, or "" when the status has none (RFC 9110 15). */
const char *http1_reason(int status);
/* The first field with this id, or NULL. */
const struct http1_field *http1_find(const struct http1_head *head, enum http1_name id);

#endif
