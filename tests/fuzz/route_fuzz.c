/* route_fuzz.c: any method and path. The first byte is the method, the rest the path.
 *
 * It must hold that no byte behind the path is read, that a refusal always says why, that what
 * changes something is never called a read, and that every segment lies within the path.
 *
 * needs: core/base.c core/end.c core/log.c core/buf.c core/http1_chunks.c core/http1.c core/route.c
 */
#include "route.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_segment(struct str segment, struct str path)
{
    if (segment.n == 0)
        return;
    must(segment.p > path.p && segment.p + segment.n <= path.p + path.n);
    must(segment.p[-1] == '/');
    must(segment.p + segment.n == path.p + path.n || segment.p[segment.n] == '/');
    must(!memchr(segment.p, '/', segment.n));
    must(!str_eq(segment, STR(".")) && !str_eq(segment, STR("..")));
}

static void check_route(const struct route *r, enum http1_method method, struct str path)
{
    must(r->name && r->action && route_class_name(r->class));
    must((r->class == ROUTE_UNSUPPORTED) == (r->refusal != END_NONE));
    must((r->class == ROUTE_UNSUPPORTED) == (r->why != NULL));
    must((r->refusal == END_METHOD) == (r->allow != NULL));
    must((r->class == ROUTE_LOCAL) == (r->local != ROUTE_NOT_LOCAL));
    must(r->class != ROUTE_WRITE || (!r->reads && r->data && method == HTTP1_POST));
    must(r->class != ROUTE_READ || r->reads);
    must(!r->by_name || r->collection.n > 0);
    if (method == HTTP1_OPTIONS)
        must(r->class == ROUTE_READ || r->refusal == END_METHOD);
    if (r->class == ROUTE_UNSUPPORTED)
        must(r->collection.n == 0 && !r->reads && !r->data);
    check_segment(r->tenant, path);
    check_segment(r->database, path);
    check_segment(r->collection, path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    enum http1_method method = (enum http1_method)(data[0] % (HTTP1_METHOD_OTHER + 1));
    size_t size = n - 1;
    char *p = malloc(size ? size : 1);
    must(p);
    if (size)
        memcpy(p, data + 1, size);
    struct str path = {p, size};
    struct route r, again;
    char uuid[37];
    route_match(method, path, &r);
    check_route(&r, method, path);
    if (method == HTTP1_GET) {
        route_match(HTTP1_HEAD, path, &again);
        must(again.name == r.name && again.class == r.class && again.refusal == r.refusal);
    }
    if (route_uuid(path, uuid)) {
        char twice[37];
        bool ok = route_uuid((struct str){uuid, 36}, twice);
        must(ok && strcmp(uuid, twice) == 0);
    }
    free(p);
    return 0;
}
