/* plant.c: owns nothing: the bug is read from the environment as each file is loaded. */
#include "plant.h"

#ifdef CHROMUX_FAULTS

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

const char *plant_text(lua_State *L, const char *name, const char *p, size_t *n)
{
    const char *file = getenv("PLANT_FILE"), *text = getenv("PLANT_TEXT");
    const char *instead = getenv("PLANT_INSTEAD");
    if (!file || !text || !instead || strcmp(file, name) != 0)
        return p;
    size_t length = strlen(text);
    const char *end = p + *n, *at = memmem(p, *n, text, length);
    const char *behind = at ? at + length : NULL;
    if (!behind || memmem(behind, (size_t)(end - behind), text, length))
        luaL_error(L, "PLANT_TEXT stands %s in lua/%s, not once", at ? "twice" : "nowhere", name);
    lua_pushlstring(L, p, (size_t)(at - p));
    lua_pushstring(L, instead);
    lua_pushlstring(L, behind, (size_t)(end - behind));
    lua_concat(L, 3);
    return lua_tolstring(L, -1, n);
}

#endif
