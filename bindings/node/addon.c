/* The C ABI for JavaScript, through Node-API, which Node 20 and Bun load alike. Everything runs on the calling thread:
 * a look of the sweep is made where the event loop reaps, never beside it. */
#define NAPI_VERSION 8
#include <node_api.h>
#include <sexton.h>
#include <stdbool.h>
#include <stdlib.h>

#define EXPORT(name, function) {name, NULL, function, NULL, NULL, NULL, napi_enumerable, NULL}

static napi_value undefined(napi_env env) {
    napi_value value = NULL;
    napi_get_undefined(env, &value);
    return value;
}

static const char *code_name(int code) {
    switch (code) {
    case SEXTON_GONE: return "GONE";
    case SEXTON_NOT_A_CHILD: return "NOT_A_CHILD";
    case SEXTON_UNPROVEN: return "UNPROVEN";
    case SEXTON_UNSUPPORTED: return "UNSUPPORTED";
    case SEXTON_BAD_ARGUMENT: return "BAD_ARGUMENT";
    default: return "FAILED";
    }
}

static napi_value refuse(napi_env env, int code) {
    napi_throw_error(env, code_name(code), code == SEXTON_BAD_ARGUMENT ? "bad argument" : sexton_error());
    return NULL;
}

static size_t arguments(napi_env env, napi_callback_info info, napi_value *args, size_t count) {
    napi_get_cb_info(env, info, &count, args, NULL, NULL);
    return count;
}

/* The thing behind the first argument, NULL for anything that is none. */
static void *thing(napi_env env, napi_value value, const napi_type_tag *tag) {
    void *pointer = NULL;
    bool is_ours = false;
    napi_valuetype type = napi_undefined;
    if (napi_typeof(env, value, &type) != napi_ok || type != napi_external) return NULL;
    if (napi_check_object_type_tag(env, value, tag, &is_ours) != napi_ok || !is_ours) return NULL;
    napi_get_value_external(env, value, &pointer);
    return pointer;
}

static napi_value wrap(napi_env env, void *pointer, napi_finalize finalize, const napi_type_tag *tag) {
    napi_value value = NULL;
    if (napi_create_external(env, pointer, finalize, NULL, &value) != napi_ok) return NULL;
    napi_type_tag_object(env, value, tag);
    return value;
}

static const napi_type_tag SWEEPER = {0x5e8f1c2ab7d94e01, 0x9a3c6d5f20b147e2};
static const napi_type_tag PROCESS = {0x1b7e93d4c5f84a66, 0x83f2a0d9e47b5c13};

static void free_sweeper(napi_env env, void *pointer, void *hint) {
    (void)env, (void)hint;
    sexton_sweeper_free(pointer);
}

static void free_process(napi_env env, void *pointer, void *hint) {
    (void)env, (void)hint;
    sexton_close(pointer);
}

/* sweeper(enabled, intervalMs, graceMs) */
static napi_value new_sweeper(napi_env env, napi_callback_info info) {
    napi_value args[3];
    sexton_sweep_options options = {0, 0, -1};
    if (arguments(env, info, args, 3) == 3) {
        bool enabled = false;
        napi_get_value_bool(env, args[0], &enabled);
        options.enabled = enabled;
        napi_get_value_int64(env, args[1], &options.interval_ms);
        napi_get_value_int64(env, args[2], &options.grace_ms);
    }
    return wrap(env, sexton_sweeper_new(&options, NULL), free_sweeper, &SWEEPER);
}

struct found {
    napi_env env;
    napi_value list;
    uint32_t count;
};

static void put_int(napi_env env, napi_value object, const char *name, int32_t number, bool known) {
    napi_value value = NULL;
    if (known) napi_create_int32(env, number, &value);
    else napi_get_null(env, &value);
    napi_set_named_property(env, object, name, value);
}

static void add_zombie(const sexton_zombie *zombie, void *user) {
    struct found *found = user;
    napi_value object = NULL, name = NULL;
    napi_create_object(found->env, &object);
    put_int(found->env, object, "pid", zombie->pid, true);
    put_int(found->env, object, "code", zombie->code, zombie->code >= 0);
    put_int(found->env, object, "signal", zombie->signal, zombie->signal > 0);
    napi_create_string_utf8(found->env, zombie->name, NAPI_AUTO_LENGTH, &name);
    napi_set_named_property(found->env, object, "name", name);
    napi_set_element(found->env, found->list, found->count++, object);
}

/* pass(sweeper): the zombies that it reaped */
static napi_value pass(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    struct found found = {env, NULL, 0};
    arguments(env, info, &arg, 1);
    napi_create_array(env, &found.list);
    int count = sexton_sweeper_pass(thing(env, arg, &SWEEPER), add_zombie, &found);
    return count < 0 ? refuse(env, count) : found.list;
}

/* status(sweeper): JSON */
static napi_value status(napi_env env, napi_callback_info info) {
    napi_value arg = NULL, text = NULL;
    char buffer[4096];
    arguments(env, info, &arg, 1);
    int code = sexton_sweeper_status(thing(env, arg, &SWEEPER), buffer, sizeof buffer);
    if (code != SEXTON_OK) return refuse(env, code);
    napi_create_string_utf8(env, buffer, NAPI_AUTO_LENGTH, &text);
    return text;
}

/* open(pid) */
static napi_value open_process(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    double pid = 0;
    sexton_process *process = NULL;
    arguments(env, info, &arg, 1);
    /* Not as int32: that would wrap a number that is none, and name another process. */
    if (napi_get_value_double(env, arg, &pid) != napi_ok || !(pid >= 2 && pid <= 0x7fffffff) || pid != (int32_t)pid)
        return refuse(env, SEXTON_BAD_ARGUMENT);
    int code = sexton_open((int32_t)pid, &process);
    return code == SEXTON_OK ? wrap(env, process, free_process, &PROCESS) : refuse(env, code);
}

static bool text_of(napi_env env, napi_value value, char *buffer, size_t room) {
    size_t length = 0;
    return napi_get_value_string_utf8(env, value, buffer, room, &length) == napi_ok && length + 1 < room;
}

/* reopen(identity) */
static napi_value reopen(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    char identity[512];
    sexton_process *process = NULL;
    arguments(env, info, &arg, 1);
    int code = text_of(env, arg, identity, sizeof identity) ? sexton_reopen(identity, &process) : SEXTON_BAD_ARGUMENT;
    return code == SEXTON_OK ? wrap(env, process, free_process, &PROCESS) : refuse(env, code);
}

/* verify(identity): undefined, or throws */
static napi_value verify(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    char identity[512];
    arguments(env, info, &arg, 1);
    int code = text_of(env, arg, identity, sizeof identity) ? sexton_verify(identity) : SEXTON_BAD_ARGUMENT;
    return code == SEXTON_OK ? undefined(env) : refuse(env, code);
}

/* identity(process) */
static napi_value identity(napi_env env, napi_callback_info info) {
    napi_value arg = NULL, text = NULL;
    char buffer[512];
    arguments(env, info, &arg, 1);
    int code = sexton_identity(thing(env, arg, &PROCESS), buffer, sizeof buffer);
    if (code != SEXTON_OK) return refuse(env, code);
    napi_create_string_utf8(env, buffer, NAPI_AUTO_LENGTH, &text);
    return text;
}

/* signal(process, number) */
static napi_value send(napi_env env, napi_callback_info info) {
    napi_value args[2] = {NULL, NULL};
    double number = -1;
    arguments(env, info, args, 2);
    if (napi_get_value_double(env, args[1], &number) != napi_ok || !(number >= 0 && number <= 64) ||
        number != (int)number)
        return refuse(env, SEXTON_BAD_ARGUMENT);
    int code = sexton_signal(thing(env, args[0], &PROCESS), (int)number);
    return code == SEXTON_OK ? undefined(env) : refuse(env, code);
}

NAPI_MODULE_INIT() {
    const napi_property_descriptor all[] = {
        EXPORT("sweeper", new_sweeper), EXPORT("pass", pass),     EXPORT("status", status),
        EXPORT("open", open_process),   EXPORT("reopen", reopen), EXPORT("verify", verify),
        EXPORT("identity", identity),   EXPORT("signal", send),
    };
    napi_define_properties(env, exports, sizeof all / sizeof *all, all);
    return exports;
}
