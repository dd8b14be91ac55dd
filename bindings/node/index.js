'use strict';
// The sweep runs on the event loop's own thread, and that is the point: libuv reaps the children of `spawn` on
// this thread, so a loop that is too busy to reap them is also too busy to look. Between two looks it has had its turn:
// each look is asked for by an immediate, which comes after the loop has polled, where a timer alone could fire twice
// within one phase. A zombie that two looks have found belongs to nobody in this program. The loop of a worker is another
// one, and says nothing about the main one: there is no sweep in a worker.

const os = require('node:os');
const path = require('node:path');
const { inspect } = require('node:util');
const { isMainThread } = require('node:worker_threads');

const DEFAULT_MS = 1000;

function load() {
    if (process.platform !== 'linux') return { reason: `not Linux but ${process.platform}` };
    try {
        return { native: require(path.join(__dirname, 'prebuilds', `linux-${process.arch}`, 'sexton.node')) };
    } catch (error) {
        return { reason: `the addon does not load: ${error.message.split('\n')[0]}` };
    }
}

const { native, reason: unloadable } = load();

// What is behind the objects below, for this module alone.
let gateOf, processOf, reaperOf;

/** A permit that was dropped without leaving must not hold up a drain for ever. */
const forgotten = new FinalizationRegistry(({ handle, gate }) => leave(handle, gate));

/** What a host gives to something that starts. Whatever is malformed is warned of and is as if it were not given. */
class Options {
    #given; #part; #log = (line) => console.error(line);

    constructor(given, part) {
        const isObject = given !== null && typeof given === 'object';
        [this.#given, this.#part] = [isObject ? given : {}, part];
        this.#log = this.function('log', this.#log);
        if (!isObject && given !== undefined) this.warn(`the options ${shown(given)} are no object`);
    }

    /** One line by the host's logger; one that fails does not stop the host. */
    warn(line) {
        try { this.#log(`sexton: ${this.#part}: ${line}`); } catch { /* There is nobody to be told. */ }
    }

    /** The value of that name; undefined where there is none. */
    get(name) {
        try { return this.#given[name] ?? undefined; } catch { this.warn(`${name} cannot be read`); }
        return undefined;
    }

    function(name, otherwise = () => {}) {
        const value = this.get(name);
        if (typeof value === 'function') return value;
        if (value !== undefined) this.warn(`${name} ${shown(value)} is no function`);
        return otherwise;
    }

    /** `250ms`, `5s`, `10m` or a number of milliseconds. */
    milliseconds(name, least) {
        const value = this.get(name);
        if (value === undefined) return DEFAULT_MS;
        const units = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
        const text = typeof value === 'string' ? /^(\d+)(ms|s|m|h)$/.exec(value) : null;
        const number = text ? Number(text[1]) * units[text[2]] : value;
        if (Number.isInteger(number) && number >= least && number <= 86_400_000) return number;
        this.warn(`${name} ${shown(value)} is no time; using ${DEFAULT_MS} ms`);
        return DEFAULT_MS;
    }

    /** True or false, or how an environment says so; off where neither is said. */
    isSet(name) {
        const value = this.get(name);
        if (value === true || value === '1' || value === 'true') return true;
        if (![undefined, false, '', '0', 'false'].includes(value)) this.warn(`${name} ${shown(value)} is neither true nor false; off`);
        return false;
    }
}

/** A value as a warning shows it, whatever it is. */
function shown(value) {
    try { return inspect(value, { depth: 1, breakLength: Infinity }); } catch { return `of type ${typeof value}`; }
}

/** Reaps zombies of processes that this program did not start. Never throws. */
class Sweep {
    #sweeper; #interval; #timer; #immediate; #onReport; #options; #stopped = false; #failures = 0; #reason = null;

    constructor(given) {
        const options = this.#options = new Options(given, 'sweep');
        this.#onReport = options.function('onReport');
        const enabled = options.isSet('enabled');
        const interval = options.milliseconds('interval', 10);
        const grace = options.milliseconds('grace', 0);
        const reaper = options.get('reaper');
        if (reaper !== undefined && !(reaper instanceof Reaper)) options.warn('the reaper is none; sweeping without');
        this.#reason = unloadable ?? (enabled && !isMainThread ? 'a worker is not the thread that children belong to' : null);
        if (this.#reason) {
            if (enabled) options.warn(`not sweeping: ${this.#reason}`);
            return;
        }
        this.#sweeper = native.sweeper(enabled, interval, grace, reaper instanceof Reaper ? reaperOf(reaper) : undefined);
        if (!this.status().active) return;
        this.#interval = interval;
        this.#schedule();
    }

    #schedule() {
        if (this.#stopped) return;
        this.#timer = setTimeout(() => {
            this.#tick();
            // Not `unref`: the loop would make it wait until something else happens.
            this.#immediate = setImmediate(() => this.#schedule());
        }, this.#interval);
        this.#timer.unref?.();
    }

    #tick() {
        try {
            const reaped = native.pass(this.#sweeper);
            this.#failures = 0;
            if (reaped.length > 0) this.#onReport({ count: reaped.length, reaped });
        } catch (error) {
            if (this.#failures++ === 0) this.#options.warn(error?.message ?? shown(error));
        }
    }

    status() {
        if (!this.#sweeper) return { active: false, reason: this.#reason, passes: 0, reaped: 0, waiting: 0 };
        const status = JSON.parse(native.status(this.#sweeper));
        return this.#stopped ? { ...status, active: false, reason: 'stopped' } : status;
    }

    stop() {
        this.#stopped = true;
        clearTimeout(this.#timer);
        clearImmediate(this.#immediate);
    }
}

/** A hold on one process, whatever becomes of its number. */
class Process {
    #handle;

    constructor(handle) { this.#handle = handle; }

    static { processOf = (process) => process.#handle; }

    /** Holds whatever process has this number now. */
    static open(pid) { return new Process(loaded().open(pid)); }

    /** Holds exactly the process of that identity; throws `GONE` or `UNPROVEN`. */
    static reopen(identity) { return new Process(loaded().reopen(identity)); }

    /** A text to be stored. */
    get identity() { return native.identity(this.#handle); }

    /** Signals this process and never another; `false` once it is gone. */
    signal(signal = 'SIGTERM') {
        const number = typeof signal === 'number' ? signal : os.constants.signals[signal];
        try {
            native.signal(this.#handle, number);
            return true;
        } catch (error) {
            if (error.code === 'GONE') return false;
            throw error;
        }
    }
}

/**
 * Reaps children that this program registers, as soon as they end: adopted ones as PID 1 or a subreaper, or what an addon
 * forked. What `spawn` started has an owner already. As with `spawn`, a registered child keeps the program from ending.
 */
class Reaper {
    #handle; #told = 0; #onExit; #options; #reason = unloadable ?? null;

    constructor(given) {
        this.#options = new Options(given, 'reaper');
        this.#onExit = this.#options.function('onExit');
        try {
            this.#handle = loaded().reaper((exit) => this.#tell(exit));
        } catch (error) {
            this.#reason = error.message;
            this.#options.warn(`not reaping: ${this.#reason}`);
        }
    }

    static { reaperOf = (reaper) => reaper.#handle; }

    /** Takes over a child that nobody has reaped, by number or as held; there is no way back, and twice is once. */
    register(child) {
        if (this.#reason) throw refusal(this.#handle ? 'STOPPED' : 'UNSUPPORTED', this.#reason);
        native.register(this.#handle, child instanceof Process ? processOf(child) : child);
        this.#keep();
    }

    #tell(exit) {
        this.#told++;
        this.#keep();
        try { this.#onExit(exit); } catch (error) { this.#options.warn(`onExit: ${error?.message ?? shown(error)}`); }
    }

    /** An exit that has come and is not yet told keeps the program from ending too. */
    #keep() {
        if (this.#reason) return;
        const { registered, reaped, vanished } = native.stats(this.#handle);
        native.keep(this.#handle, registered + reaped + vanished > this.#told);
    }

    stats() {
        const none = { registered: 0, polled: 0, held: 0, reaped: 0, vanished: 0, sweeps: 0, lastSweepMs: 0, restarts: 0,
            latencyTotalUs: 0, latencyMaxUs: 0, alive: false };
        return { ...(this.#reason ? none : native.stats(this.#handle)), reason: this.#reason };
    }

    /** What is registered stays unreaped, and exits that are not yet told are told to nobody. */
    stop() {
        if (this.#reason) return;
        this.#reason = 'stopped';
        native.stop(this.#handle);
    }
}

function refusal(code, message) {
    return Object.assign(new Error(message), { code });
}

function loaded() {
    if (native) return native;
    throw refusal('UNSUPPORTED', unloadable);
}

/** One admitted operation; over once it has left, or when nobody knows it any more. */
class Permit {
    #handle; #gate;

    constructor(handle, gate) {
        [this.#handle, this.#gate] = [handle, gate];
        forgotten.register(this, { handle, gate }, this);
    }

    leave() {
        forgotten.unregister(this);
        leave(this.#handle, this.#gate);
    }
}

/** Admits operations until it is drained, for good. */
class Gate {
    #handle = loaded().gate();
    #waiting = [];

    static { gateOf = (gate) => ({ handle: gate.#handle, waiting: gate.#waiting }); }

    /** A permit for one operation of that kind, a word such as `start` or `upload`; throws `DRAINING`. */
    enter(kind) { return new Permit(native.enter(this.#handle, kind), this); }

    /** Runs `work` inside, a promise too, and leaves when it is over, however that is. */
    async run(kind, work) {
        const permit = this.enter(kind);
        try { return await work(); } finally { permit.leave(); }
    }

    /** Closes it; what is inside goes on. Resolves once nothing is, which then is so for good. */
    drain() {
        native.beginDrain(this.#handle);
        if (this.isIdle) return Promise.resolve();
        return new Promise((resolve) => this.#waiting.push(resolve));
    }

    get isDraining() { return native.isDraining(this.#handle); }

    get isIdle() { return native.isIdle(this.#handle); }

    /** Kind and age of each operation inside, the oldest first. */
    inFlight() { return native.inFlight(this.#handle); }
}

function leave(permit, gate) {
    native.leave(permit);
    const { handle, waiting } = gateOf(gate);
    if (waiting.length > 0 && native.isIdle(handle)) waiting.splice(0).forEach((resolve) => resolve());
}

/** `running`, `gone`, or `unproven`: a process of that number may or may not be it. */
function verify(identity) {
    try {
        loaded().verify(identity);
        return 'running';
    } catch (error) {
        if (error.code === 'GONE') return 'gone';
        if (error.code === 'UNPROVEN') return 'unproven';
        throw error;
    }
}

module.exports = {
    Gate, Process, Reaper, Sweep, reaper: (options) => new Reaper(options), sweep: (options) => new Sweep(options), verify,
};
