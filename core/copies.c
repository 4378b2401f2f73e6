/* copies.c: a hash table of collections by logical id, chained, doubled when it is full. Names of
 * instances are kept once: copies_clear() alone forgets them. */
#include "copies.h"

#include <stdlib.h>

enum { ID_SIZE = 37, BUCKETS_LEAST = 64 };

struct copy {
    const char *instance; /* in names */
    uint64_t position;
    bool readable;
    char physical[ID_SIZE];
};

struct collection {
    struct collection *next; /* in the same bucket */
    uint64_t floor;
    struct copy *copy;
    unsigned copies;
    uint32_t hash;
    char logical[ID_SIZE];
    size_t tenant_n, database_n;
    char *text; /* the tenant, then the database */
};

bool copies_expected, copies_on;
void (*copies_looked)(const char *logical, bool sure);

static struct collection **buckets;
static unsigned bucket_count, count;
static char **names;
static unsigned name_count;

/* FNV-1a (Fowler, Noll, Vo). */
static uint32_t hash_of(const char *id)
{
    uint32_t h = 2166136261u;
    for (unsigned i = 0; i < ID_SIZE - 1; i++)
        h = (h ^ (unsigned char)id[i]) * 16777619u;
    return h;
}

/* The place that holds the collection, or where a new one belongs. */
static struct collection **place_of(const char *logical, uint32_t hash)
{
    struct collection **at = &buckets[hash & (bucket_count - 1)];
    while (*at && ((*at)->hash != hash || memcmp((*at)->logical, logical, ID_SIZE - 1) != 0))
        at = &(*at)->next;
    return at;
}

static struct collection *find(const char *logical)
{
    return count ? *place_of(logical, hash_of(logical)) : NULL;
}

static void grow(void)
{
    unsigned was = bucket_count;
    struct collection **old = buckets;
    if (count < bucket_count)
        return;
    bucket_count = was ? 2 * was : BUCKETS_LEAST;
    buckets = base_zalloc(bucket_count * sizeof(struct collection *));
    for (unsigned i = 0; i < was; i++)
        for (struct collection *c = old[i], *next; c; c = next) {
            struct collection **at = &buckets[c->hash & (bucket_count - 1)];
            next = c->next;
            c->next = *at;
            *at = c;
        }
    free(old);
}

static void set_id(char id[ID_SIZE], const char *text)
{
    memcpy(id, text, ID_SIZE - 1);
    id[ID_SIZE - 1] = 0;
}

static const char *name_kept(struct str name)
{
    for (unsigned i = 0; i < name_count; i++)
        if (str_eq(str_from(names[i]), name))
            return names[i];
    names = base_realloc(names, (name_count + 1) * sizeof *names);
    names[name_count] = base_printf("%.*s", (int)name.n, name.p);
    return names[name_count++];
}

static struct copy *copy_on(const struct collection *c, struct str instance)
{
    for (unsigned i = 0; i < c->copies; i++)
        if (str_eq(str_from(c->copy[i].instance), instance))
            return &c->copy[i];
    return NULL;
}

static void collection_free(struct collection *c)
{
    free(c->text);
    free(c->copy);
    free(c);
}

/* ---- what the journal says ---- */

void copies_collection_set(const char *logical, struct str tenant, struct str database,
                           uint64_t floor)
{
    uint32_t hash = hash_of(logical);
    grow();
    struct collection **at = place_of(logical, hash), *c = *at;
    if (!c) {
        c = *at = base_zalloc(sizeof *c);
        c->hash = hash;
        set_id(c->logical, logical);
        count++;
    }
    if (!c->text || !copies_belongs(c, tenant, database)) {
        free(c->text);
        c->text = base_printf("%.*s%.*s", (int)tenant.n, tenant.p, (int)database.n, database.p);
        c->tenant_n = tenant.n;
        c->database_n = database.n;
    }
    c->floor = floor > c->floor ? floor : c->floor;
}

void copies_collection_drop(const char *logical)
{
    if (!count)
        return;
    struct collection **at = place_of(logical, hash_of(logical)), *c = *at;
    if (!c)
        return;
    *at = c->next;
    count--;
    collection_free(c);
}

bool copies_floor(const char *logical, uint64_t n)
{
    struct collection *c = find(logical);
    if (c && n > c->floor)
        c->floor = n;
    return c != NULL;
}

bool copies_copy_set(const char *logical, struct str instance, const char *physical,
                     uint64_t position, bool readable)
{
    struct collection *c = find(logical);
    if (!c)
        return false;
    struct copy *copy = copy_on(c, instance);
    if (!copy) {
        c->copy = base_realloc(c->copy, (c->copies + 1) * sizeof *c->copy);
        copy = &c->copy[c->copies++];
        copy->instance = name_kept(instance);
    }
    set_id(copy->physical, physical);
    copy->position = position;
    copy->readable = readable;
    return true;
}

void copies_copy_drop(const char *logical, struct str instance)
{
    struct collection *c = find(logical);
    struct copy *copy = c ? copy_on(c, instance) : NULL;
    if (copy)
        *copy = c->copy[--c->copies];
}

void copies_clear(void)
{
    for (unsigned i = 0; i < bucket_count; i++)
        for (struct collection *c = buckets[i], *next; c; c = next) {
            next = c->next;
            collection_free(c);
        }
    for (unsigned i = 0; i < name_count; i++)
        free(names[i]);
    free(buckets);
    free(names);
    buckets = NULL;
    names = NULL;
    bucket_count = count = name_count = 0;
}

unsigned copies_count(void)
{
    return count;
}

/* ---- what the request path asks ---- */

const struct collection *copies_find(const char *logical)
{
    return find(logical);
}

bool copies_belongs(const struct collection *c, struct str tenant, struct str database)
{
    return str_eq((struct str){c->text, c->tenant_n}, tenant) &&
           str_eq((struct str){c->text + c->tenant_n, c->database_n}, database);
}

uint64_t copies_behind(const struct collection *c, const struct node *n)
{
    const struct copy *copy = copy_on(c, str_from(n->name));
    uint64_t position = copy ? copy->position : 0;
    return c->floor > position ? c->floor - position : 0;
}

bool copies_may_read(const struct collection *c, const struct node *n, uint64_t max_behind)
{
    const struct copy *copy = copy_on(c, str_from(n->name));
    return copy && copy->readable && copies_behind(c, n) <= max_behind;
}

const char *copies_physical(const struct collection *c, const struct node *n)
{
    const struct copy *copy = copy_on(c, str_from(n->name));
    return copy ? copy->physical : NULL;
}
