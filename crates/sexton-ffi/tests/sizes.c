/* Everything that a C program can ask, in one program: layout, refusals, and the life of one process. */
#include <assert.h>
#include <signal.h>
#include <sexton.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

_Static_assert(sizeof(sexton_exit) == 16, "exit");
_Static_assert(sizeof(sexton_reaper_stats) == 88, "stats");
_Static_assert(sizeof(sexton_sweep_options) == 24, "options");
_Static_assert(sizeof(sexton_zombie) == 24 && offsetof(sexton_zombie, name) == 16, "zombie");

_Static_assert(sizeof(sexton_inside) == 16 && offsetof(sexton_inside, age_ms) == 8, "inside");

static int lines;
static char last_line[512];

static void on_log(int level, const char *line, void *user) {
    assert(level >= 1 && level <= 3 && user == &lines);
    lines++;
    snprintf(last_line, sizeof last_line, "%s", line);
}

static void on_zombie(const sexton_zombie *zombie, void *user) {
    *(sexton_zombie *)user = *zombie;
}

static void identity(void) {
    char text[256], small[8];
    sexton_process *process = NULL, *again = NULL;
    pid_t pid = fork();
    if (pid == 0) for (;;) pause();
    assert(sexton_open(pid, &process) == SEXTON_OK);
    assert(sexton_pidfd(process) > 2);
    assert(sexton_identity(process, small, sizeof small) == SEXTON_TOO_SMALL && strstr(sexton_error(), "needs"));
    assert(sexton_identity(process, text, sizeof text) == SEXTON_OK);
    assert(sexton_verify(text) == SEXTON_OK);
    assert(sexton_reopen(text, &again) == SEXTON_OK);
    assert(sexton_signal(again, 65) == SEXTON_BAD_ARGUMENT);
    assert(sexton_signal(again, SIGKILL) == SEXTON_OK);
    assert(waitpid(pid, NULL, 0) == pid);
    assert(sexton_signal(process, SIGKILL) == SEXTON_GONE);
    assert(sexton_verify(text) == SEXTON_GONE);
    sexton_close(process);
    sexton_close(again);
    sexton_close(NULL);
    assert(sexton_open(1, &process) == SEXTON_BAD_ARGUMENT);
    assert(sexton_open(-5, &process) == SEXTON_BAD_ARGUMENT);
    assert(sexton_open(getpid(), NULL) == SEXTON_BAD_ARGUMENT);
    assert(sexton_verify(NULL) == SEXTON_BAD_ARGUMENT);
    assert(sexton_verify("4711") == SEXTON_BAD_ARGUMENT);
}

static void reaper(void) {
    sexton_reaper *reaper = NULL;
    sexton_exit end;
    sexton_reaper_stats stats;
    assert(sexton_reaper_start(NULL, NULL, &reaper) == SEXTON_OK);
    assert(sexton_reaper_register(reaper, getpid()) == SEXTON_NOT_A_CHILD);
    assert(sexton_reaper_take(reaper, 0, &end) == SEXTON_NOTHING_YET);
    assert(sexton_reaper_register(NULL, 2) == SEXTON_BAD_ARGUMENT);
    pid_t pid = fork();
    if (pid == 0) raise(SIGKILL);
    assert(sexton_reaper_register(reaper, pid) == SEXTON_OK);
    assert(sexton_reaper_take(reaper, 20000, &end) == SEXTON_OK);
    assert(end.pid == pid && end.code == -1 && end.signal == SIGKILL && !end.vanished);
    assert(sexton_reaper_read_stats(reaper, &stats) == SEXTON_OK);
    assert(stats.reaped == 1 && stats.registered == 0 && stats.alive == 1 && stats.restarts == 0);
    /* By what is held, and twice is once. */
    sexton_process *process = NULL;
    assert(sexton_reaper_register_process(reaper, NULL) == SEXTON_BAD_ARGUMENT);
    pid = fork();
    if (pid == 0) for (;;) pause();
    assert(sexton_open(pid, &process) == SEXTON_OK && sexton_reaper_register_process(reaper, process) == SEXTON_OK);
    assert(sexton_reaper_register(reaper, pid) == SEXTON_OK && sexton_signal(process, SIGTERM) == SEXTON_OK);
    assert(sexton_reaper_take(reaper, 20000, &end) == SEXTON_OK && end.pid == pid && end.signal == SIGTERM);
    assert(sexton_reaper_register_process(reaper, process) == SEXTON_GONE);
    sexton_close(process);
    assert(sexton_open(getppid(), &process) == SEXTON_OK);
    assert(sexton_reaper_register_process(reaper, process) == SEXTON_NOT_A_CHILD);
    sexton_close(process);
    /* A fork owns neither the thread nor the children, and ends all the same. */
    pid = fork();
    if (pid == 0) {
        int refused = sexton_reaper_register(reaper, getpid());
        sexton_reaper_stop(reaper);
        _exit(refused == SEXTON_STOPPED ? 0 : 1);
    }
    int status = -1;
    assert(waitpid(pid, &status, 0) == pid && status == 0);
    sexton_reaper_stop(reaper);
}

static void sweep(void) {
    char text[256];
    sexton_zombie zombie = {0};
    sexton_sweep *off = sexton_sweep_start(NULL, NULL, NULL, NULL);
    assert(sexton_sweep_status(off, text, sizeof text) == SEXTON_OK && strstr(text, "\"not enabled\""));
    sexton_sweep_stop(off);
    sexton_sweep_options options = {1, 0, 0};
    sexton_sweeper *sweeper = sexton_sweeper_new(&options, NULL);
    assert(sexton_sweeper_status(sweeper, text, sizeof text) == SEXTON_OK && strstr(text, "subreaper"));
    assert(lines == 1 && strstr(last_line, "not sweeping") && strstr(last_line, "subreaper"));
    assert(sexton_sweeper_pass(sweeper, on_zombie, &zombie) == 0);
    sexton_sweeper_free(sweeper);

    assert(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    options.interval_ms = -3; /* warned of, and never refused */
    sweeper = sexton_sweeper_new(&options, NULL);
    assert(lines == 2 && strstr(last_line, "interval"));
    int fds[2];
    assert(pipe(fds) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        pid_t orphan = fork();
        if (orphan == 0) _exit(3);
        assert(write(fds[1], &orphan, sizeof orphan) == sizeof orphan);
        _exit(0);
    }
    pid_t orphan;
    assert(waitpid(pid, NULL, 0) == pid && read(fds[0], &orphan, sizeof orphan) == sizeof orphan);
    siginfo_t info;
    assert(waitid(P_PID, orphan, &info, WEXITED | WNOWAIT) == 0);
    sexton_sweeper *other = sexton_sweeper_new(&options, NULL);
    assert(sexton_sweeper_spare(other, orphan) == SEXTON_OK && sexton_sweeper_spare(other, 0) == SEXTON_BAD_ARGUMENT);
    for (int i = 0; i < 3; i++) assert(sexton_sweeper_pass(other, on_zombie, &zombie) == 0);
    sexton_sweeper_free(other);
    assert(sexton_sweeper_pass(sweeper, on_zombie, &zombie) == 0);
    assert(sexton_sweeper_pass(sweeper, on_zombie, &zombie) == 1);
    assert(zombie.pid == orphan && zombie.code == 3 && zombie.signal == 0);
    assert(lines == 4 && strstr(last_line, "count=1"));
    sexton_sweeper_free(sweeper);

    sexton_sweep *thread = sexton_sweep_start(&options, NULL, NULL, NULL);
    sexton_sweep_ring(thread);
    assert(sexton_sweep_status(thread, text, sizeof text) == SEXTON_OK && strstr(text, "\"active\":true"));
    sexton_sweep_stop(thread);
    sexton_sweep_stop(NULL);
}

static void on_inside(const sexton_inside *inside, void *user) {
    strcat(strcat(user, inside->kind), " ");
    assert(inside->age_ms < 60000);
}

static void on_idle(void *user) {
    ++*(int *)user;
}

static void gate(void) {
    char kinds[64] = "";
    int idle = 0;
    sexton_permit *start = NULL, *upload = NULL, *late = NULL;
    sexton_gate *gate = sexton_gate_new();
    assert(sexton_gate_enter(gate, "start", &start) == SEXTON_OK && sexton_gate_enter(gate, "upload", &upload) == SEXTON_OK);
    assert(sexton_gate_enter(gate, "No word", &late) == SEXTON_BAD_ARGUMENT && strstr(sexton_error(), "No word"));
    assert(sexton_gate_enter(gate, NULL, &late) == SEXTON_BAD_ARGUMENT && sexton_gate_enter(NULL, "start", &late) < 0);
    assert(sexton_gate_is_draining(gate) == 0 && sexton_gate_is_idle(gate) == 0);
    assert(sexton_gate_when_idle(gate, NULL, NULL) == SEXTON_BAD_ARGUMENT);
    assert(sexton_gate_when_idle(gate, on_idle, &idle) == SEXTON_OK);
    assert(sexton_gate_begin_drain(gate) == SEXTON_OK && sexton_gate_is_draining(gate) == 1);
    assert(sexton_gate_enter(gate, "start", &late) == SEXTON_DRAINING && late == NULL);
    assert(sexton_gate_in_flight(gate, on_inside, kinds) == 2 && strstr(kinds, "start ") && strstr(kinds, "upload "));
    sexton_permit_leave(start);
    assert(sexton_gate_wait_idle(gate, 0) == SEXTON_NOTHING_YET && strstr(sexton_error(), "1 operation") && idle == 0);
    sexton_permit_leave(upload);
    assert(sexton_gate_wait_idle(gate, -1) == SEXTON_OK && sexton_gate_is_idle(gate) == 1 && idle == 1);
    assert(sexton_gate_in_flight(gate, on_inside, kinds) == 0 && sexton_gate_is_idle(NULL) == SEXTON_BAD_ARGUMENT);
    sexton_permit_leave(NULL);
    sexton_gate_free(gate);
    sexton_gate_free(NULL);
}

int main(void) {
    sexton_log(on_log, &lines);
    assert(strlen(sexton_version()) >= 5);
    identity();
    reaper();
    sweep();
    gate();
    puts("done");
}
