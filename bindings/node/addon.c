/* The C ABI for JavaScript, through Node-API, which Node 20 and Bun load alike. A look of the sweep is made on the event
 * loop's own thread, where it reaps, never beside it. The reaper has a thread of its own, which only queues what ended. */
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
    case SEXTON_STOPPED: return "STOPPED";
    case SEXTON_DRAINING: return "DRAINING";
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
static const napi_type_tag GATE = {0x70d9a1e65c3b4f82, 0xa85b2c9e61f7430d};
static const napi_type_tag PERMIT = {0xe4936d0b8f2c4715, 0x92d7f6a31c5e4b08};
static const napi_type_tag REAPER = {0xc27d40f18e9b4a35, 0xb6015e7f93d84c2a};

struct reaper {
    sexton_reaper *reaper;
    napi_threadsafe_function told;
};

static void free_sweeper(napi_env env, void *pointer, void *hint) {
    (void)env, (void)hint;
    sexton_sweeper_free(pointer);
}

static void free_process(napi_env env, void *pointer, void *hint) {
    (void)env, (void)hint;
    sexton_close(pointer);
}

/* sweeper(enabled, intervalMs, graceMs, reaper) */
static napi_value new_sweeper(napi_env env, napi_callback_info info) {
    napi_value args[4];
    sexton_sweep_options options = {0, 0, -1};
    struct reaper *beside = NULL;
    if (arguments(env, info, args, 4) == 4) {
        bool enabled = false;
        napi_get_value_bool(env, args[0], &enabled);
        options.enabled = enabled;
        napi_get_value_int64(env, args[1], &options.interval_ms);
        napi_get_value_int64(env, args[2], &options.grace_ms);
        beside = thing(env, args[3], &REAPER);
    }
    return wrap(env, sexton_sweeper_new(&options, beside ? beside->reaper : NULL), free_sweeper, &SWEEPER);
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

/* A PID; not read as int32: that would wrap a number that is none, and name another process. */
static bool pid_of(napi_env env, napi_value value, int32_t *pid) {
    double number = 0;
    if (napi_get_value_double(env, value, &number) != napi_ok || !(number >= 2 && number <= 0x7fffffff)) return false;
    *pid = (int32_t)number;
    return number == *pid;
}

/* open(pid) */
static napi_value open_process(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    int32_t pid = 0;
    sexton_process *process = NULL;
    arguments(env, info, &arg, 1);
    if (!pid_of(env, arg, &pid)) return refuse(env, SEXTON_BAD_ARGUMENT);
    int code = sexton_open(pid, &process);
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

/* On the reaper's thread. What cannot be queued is told to nobody: the environment is ending. */
static void queue_exit(const sexton_exit *end, void *user) {
    struct reaper *reaper = user;
    sexton_exit *copy = malloc(sizeof *copy);
    if (!copy) return;
    *copy = *end;
    if (napi_call_threadsafe_function(reaper->told, copy, napi_tsfn_nonblocking) != napi_ok) free(copy);
}

/* On the event loop's thread. */
static void tell_exit(napi_env env, napi_value on_exit, void *context, void *data) {
    sexton_exit *end = data;
    napi_value object = NULL, vanished = NULL, receiver = NULL;
    (void)context;
    if (env) {
        napi_create_object(env, &object);
        put_int(env, object, "pid", end->pid, true);
        put_int(env, object, "code", end->code, end->code >= 0);
        put_int(env, object, "signal", end->signal, end->signal > 0);
        napi_get_boolean(env, end->vanished != 0, &vanished);
        napi_set_named_property(env, object, "vanished", vanished);
        napi_get_undefined(env, &receiver);
        napi_call_function(env, receiver, on_exit, 1, &object, NULL);
    }
    free(end);
}

/* Joins the reaper's thread first: it is the one that uses the queue. */
static void stop_reaper(void *data) {
    struct reaper *reaper = data;
    if (!reaper->reaper) return;
    sexton_reaper_stop(reaper->reaper);
    reaper->reaper = NULL;
    napi_release_threadsafe_function(reaper->told, napi_tsfn_abort);
}

static void free_reaper(napi_env env, void *pointer, void *hint) {
    struct reaper *reaper = pointer;
    (void)hint;
    if (reaper->reaper) napi_remove_env_cleanup_hook(env, stop_reaper, reaper);
    stop_reaper(reaper);
    free(reaper);
}

/* reaper(onExit): its queue keeps no program from ending until `keep` says so */
static napi_value new_reaper(napi_env env, napi_callback_info info) {
    napi_value on_exit = NULL, name = NULL;
    struct reaper *reaper = calloc(1, sizeof *reaper);
    arguments(env, info, &on_exit, 1);
    napi_create_string_utf8(env, "sexton-reaper", NAPI_AUTO_LENGTH, &name);
    if (!reaper || napi_create_threadsafe_function(env, on_exit, NULL, name, 0, 1, NULL, NULL, reaper, tell_exit,
                                                   &reaper->told) != napi_ok) {
        free(reaper);
        return refuse(env, SEXTON_BAD_ARGUMENT);
    }
    napi_unref_threadsafe_function(env, reaper->told);
    int code = sexton_reaper_start(queue_exit, reaper, &reaper->reaper);
    if (code != SEXTON_OK) {
        napi_release_threadsafe_function(reaper->told, napi_tsfn_abort);
        free(reaper);
        return refuse(env, code);
    }
    /* Before the environment takes the queue away: hooks run in the opposite order of their making. */
    napi_add_env_cleanup_hook(env, stop_reaper, reaper);
    return wrap(env, reaper, free_reaper, &REAPER);
}

static struct reaper *running_reaper(napi_env env, napi_value value) {
    struct reaper *reaper = thing(env, value, &REAPER);
    return reaper && reaper->reaper ? reaper : NULL;
}

/* register(reaper, process or pid) */
static napi_value register_child(napi_env env, napi_callback_info info) {
    napi_value args[2] = {NULL, NULL};
    int32_t pid = 0;
    int code = SEXTON_BAD_ARGUMENT;
    arguments(env, info, args, 2);
    struct reaper *reaper = running_reaper(env, args[0]);
    sexton_process *process = thing(env, args[1], &PROCESS);
    if (process && reaper) code = sexton_reaper_register_process(reaper->reaper, process);
    else if (reaper && pid_of(env, args[1], &pid)) code = sexton_reaper_register(reaper->reaper, pid);
    return code == SEXTON_OK ? undefined(env) : refuse(env, code);
}

/* keep(reaper, whether): has its queue keep the program from ending, or not */
static napi_value keep(napi_env env, napi_callback_info info) {
    napi_value args[2] = {NULL, NULL};
    bool whether = false;
    arguments(env, info, args, 2);
    struct reaper *reaper = running_reaper(env, args[0]);
    napi_get_value_bool(env, args[1], &whether);
    if (reaper && whether) napi_ref_threadsafe_function(env, reaper->told);
    else if (reaper) napi_unref_threadsafe_function(env, reaper->told);
    return undefined(env);
}

static void put_count(napi_env env, napi_value object, const char *name, uint64_t count) {
    napi_value value = NULL;
    napi_create_double(env, (double)count, &value);
    napi_set_named_property(env, object, name, value);
}

/* stats(reaper) */
static napi_value reaper_stats(napi_env env, napi_callback_info info) {
    napi_value arg = NULL, object = NULL, alive = NULL;
    sexton_reaper_stats stats;
    arguments(env, info, &arg, 1);
    struct reaper *reaper = running_reaper(env, arg);
    int code = reaper ? sexton_reaper_read_stats(reaper->reaper, &stats) : SEXTON_BAD_ARGUMENT;
    if (code != SEXTON_OK) return refuse(env, code);
    napi_create_object(env, &object);
    put_count(env, object, "registered", stats.registered);
    put_count(env, object, "polled", stats.polled);
    put_count(env, object, "held", stats.held);
    put_count(env, object, "reaped", stats.reaped);
    put_count(env, object, "vanished", stats.vanished);
    put_count(env, object, "sweeps", stats.sweeps);
    put_count(env, object, "lastSweepMs", stats.last_sweep_ms);
    put_count(env, object, "restarts", stats.restarts);
    put_count(env, object, "latencyTotalUs", stats.latency_total_us);
    put_count(env, object, "latencyMaxUs", stats.latency_max_us);
    napi_get_boolean(env, stats.alive != 0, &alive);
    napi_set_named_property(env, object, "alive", alive);
    return object;
}

/* stop(reaper) */
static napi_value stop(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    arguments(env, info, &arg, 1);
    struct reaper *reaper = running_reaper(env, arg);
    if (reaper) {
        napi_remove_env_cleanup_hook(env, stop_reaper, reaper);
        stop_reaper(reaper);
    }
    return undefined(env);
}

static void free_gate(napi_env env, void *pointer, void *hint) {
    (void)env, (void)hint;
    sexton_gate_free(pointer);
}

/* A permit that may have been given back already. */
struct permit {
    sexton_permit *permit;
};

static void free_permit(napi_env env, void *pointer, void *hint) {
    struct permit *permit = pointer;
    (void)env, (void)hint;
    sexton_permit_leave(permit->permit);
    free(permit);
}

/* gate() */
static napi_value new_gate(napi_env env, napi_callback_info info) {
    (void)info;
    return wrap(env, sexton_gate_new(), free_gate, &GATE);
}

/* enter(gate, kind) */
static napi_value enter(napi_env env, napi_callback_info info) {
    napi_value args[2] = {NULL, NULL};
    char kind[128];
    struct permit *permit = calloc(1, sizeof *permit);
    int code = permit ? SEXTON_BAD_ARGUMENT : SEXTON_FAILED;
    arguments(env, info, args, 2);
    if (permit && text_of(env, args[1], kind, sizeof kind))
        code = sexton_gate_enter(thing(env, args[0], &GATE), kind, &permit->permit);
    if (code == SEXTON_OK) return wrap(env, permit, free_permit, &PERMIT);
    free(permit);
    return refuse(env, code);
}

/* leave(permit): once or more often */
static napi_value leave(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    arguments(env, info, &arg, 1);
    struct permit *permit = thing(env, arg, &PERMIT);
    if (permit) {
        sexton_permit_leave(permit->permit);
        permit->permit = NULL;
    }
    return undefined(env);
}

/* beginDrain(gate) */
static napi_value begin_drain(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    arguments(env, info, &arg, 1);
    int code = sexton_gate_begin_drain(thing(env, arg, &GATE));
    return code == SEXTON_OK ? undefined(env) : refuse(env, code);
}

static napi_value answer(napi_env env, int yes) {
    napi_value value = NULL;
    if (yes < 0) return refuse(env, yes);
    napi_get_boolean(env, yes == 1, &value);
    return value;
}

/* isDraining(gate) */
static napi_value is_draining(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    arguments(env, info, &arg, 1);
    return answer(env, sexton_gate_is_draining(thing(env, arg, &GATE)));
}

/* isIdle(gate) */
static napi_value is_idle(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    arguments(env, info, &arg, 1);
    return answer(env, sexton_gate_is_idle(thing(env, arg, &GATE)));
}

static void add_inside(const sexton_inside *inside, void *user) {
    struct found *found = user;
    napi_value object = NULL, kind = NULL;
    napi_create_object(found->env, &object);
    napi_create_string_utf8(found->env, inside->kind, NAPI_AUTO_LENGTH, &kind);
    napi_set_named_property(found->env, object, "kind", kind);
    put_count(found->env, object, "ageMs", inside->age_ms);
    napi_set_element(found->env, found->list, found->count++, object);
}

/* inFlight(gate) */
static napi_value in_flight(napi_env env, napi_callback_info info) {
    napi_value arg = NULL;
    struct found found = {env, NULL, 0};
    arguments(env, info, &arg, 1);
    napi_create_array(env, &found.list);
    int count = sexton_gate_in_flight(thing(env, arg, &GATE), add_inside, &found);
    return count < 0 ? refuse(env, count) : found.list;
}

NAPI_MODULE_INIT() {
    const napi_property_descriptor all[] = {
        EXPORT("sweeper", new_sweeper),     EXPORT("pass", pass),         EXPORT("status", status),
        EXPORT("open", open_process),       EXPORT("reopen", reopen),     EXPORT("verify", verify),
        EXPORT("identity", identity),       EXPORT("signal", send),       EXPORT("reaper", new_reaper),
        EXPORT("register", register_child), EXPORT("keep", keep),         EXPORT("stats", reaper_stats),
        EXPORT("stop", stop),               EXPORT("gate", new_gate),     EXPORT("enter", enter),
        EXPORT("leave", leave),             EXPORT("isIdle", is_idle),    EXPORT("isDraining", is_draining),
        EXPORT("inFlight", in_flight),      EXPORT("beginDrain", begin_drain),
    };
    napi_define_properties(env, exports, sizeof all / sizeof *all, all);
    return exports;
}
