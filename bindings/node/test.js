'use strict';
// Runs under Node and Bun. As PID 1 of a PID namespace of its own it is the daemon under test; else it makes that
// namespace, and checks what needs none.

const assert = require('node:assert');
const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { Worker } = require('node:worker_threads');

const PACKAGE = process.env.SEXTON_TEST_PACKAGE ?? './index.js';
const { Gate, Process, reaper, sweep, verify } = require(PACKAGE);

const COUNT = Number(process.env.SEXTON_TEST_COUNT ?? 1000);
const BURST = 50;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function eventually(what, holds) {
    const end = Date.now() + 30_000;
    while (!(await holds())) {
        assert(Date.now() < end, `never: ${what}`);
        await later(10);
    }
}

/** Resolves with code and signal once `exit` was emitted. */
function exitOf(program, args) {
    return new Promise((resolve, reject) => {
        const child = spawn(program, args, { stdio: 'ignore' });
        child.on('exit', (code, signal) => resolve({ pid: child.pid, code, signal }));
        child.on('error', reject);
    });
}

function defunct() {
    const stats = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map((name) => {
        try { return fs.readFileSync(`/proc/${name}/stat`, 'latin1'); } catch { return ''; }
    });
    return stats.filter((stat) => stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z'));
}

function block(ms) {
    const end = Date.now() + ms;
    while (Date.now() < end) { /* A loop that is too busy to reap. */ }
}

/** An orphan of ours, by its number; it ends with `code` once `end` is called. */
function orphan(code) {
    return new Promise((resolve, reject) => {
        // Its subshell reads until the pipe ends, which is when we close our end of it.
        const parent = spawn('sh', ['-c', `(read _ <&3; exit ${code}) & echo $!`], { stdio: ['ignore', 'pipe', 'ignore', 'pipe'] });
        let text = '';
        parent.stdout.on('data', (data) => { text += data; });
        parent.on('error', reject);
        // The subshell holds stdout too, so that it never closes: `exit`, not `close`.
        parent.on('exit', () => eventually('its number is told', () => text.endsWith('\n')).then(
            () => resolve({ pid: Number(text), end: () => parent.stdio[3].destroy() }), reject));
    });
}

async function registeredOrphansAreTold() {
    const told = [], lines = [], codes = Array.from({ length: 32 }, (_, i) => i * 8 + 1);
    const reaping = reaper({ onExit: (exit) => { told.push(exit); throw new Error('in onExit'); }, log: (line) => lines.push(line) });
    const orphans = await Promise.all(codes.map(orphan));
    for (const [i, { pid }] of orphans.entries()) {
        reaping.register(i % 2 ? Process.open(pid) : pid);
        reaping.register(pid);
    }
    for (const none of [0, 1, -7, 2.5, '77', null, {}]) {
        assert.throws(() => reaping.register(none), { code: 'BAD_ARGUMENT' }, String(none));
    }
    assert.throws(() => reaping.register(0x7fffffff), { code: 'GONE' });
    assert.strictEqual(reaping.stats().registered, codes.length);
    orphans.forEach(({ end }) => end());
    await eventually('every exit is told', () => told.length === codes.length);
    const expected = orphans.map(({ pid }, i) => ({ pid, code: codes[i], signal: null, vanished: false }));
    const byPid = (a, b) => a.pid - b.pid;
    assert.deepStrictEqual(told.sort(byPid), expected.sort(byPid));
    const { registered, reaped, alive, restarts } = reaping.stats();
    assert.deepStrictEqual({ registered, reaped, alive, restarts }, { registered: 0, reaped: codes.length, alive: true, restarts: 0 });
    assert.strictEqual(lines.length, codes.length);
    reaping.stop();
    reaping.stop();
    assert.throws(() => reaping.register(2), { code: 'STOPPED' });
    assert.strictEqual(reaping.stats().reason, 'stopped');
}

/** As PID 1 with nothing else to do: the program must not end before the exit is told. */
async function aRegisteredChildKeepsTheProgram() {
    const { pid, end } = await orphan(5);
    reaper({ onExit: (exit) => console.log(`told ${exit.code}`) }).register(pid);
    end();
}

/** As PID 1 that sleeps: nothing wakes the loop but the sweep itself, which goes on though what is told of it throws. */
function anIdleProgramIsSwept() {
    const keeps = new MessageChannel();
    keeps.port1.on('message', () => {});
    let reports = 0;
    sweep({
        enabled: true, interval: '20ms', grace: 0, log: (line) => console.log(line),
        onReport: ({ reaped }) => {
            console.log('swept', reaped[0].name);
            if (++reports === 1) throw null;
            keeps.port1.close();
        },
    });
    spawn('sh', ['-c', '(sleep 0.3) & (sleep 0.6) & exit 1'], { stdio: 'ignore' });
}

/** As PID 1: the sweep of a worker would be awake while the main loop is too busy to reap. */
function aWorkerSweepsNothing() {
    const script = `const { sweep } = require(${JSON.stringify(require.resolve(PACKAGE))});
        require('node:worker_threads').parentPort.postMessage(sweep({ enabled: true, log: () => {} }).status());`;
    return new Promise((resolve, reject) => {
        const worker = new Worker(script, { eval: true });
        worker.on('error', reject);
        worker.on('message', (status) => resolve(assert.deepStrictEqual([status.active, /worker/.test(status.reason)], [false, true])));
    });
}

async function asInit() {
    if (process.env.SEXTON_TEST_IDLES) return anIdleProgramIsSwept();
    if (process.env.SEXTON_TEST_KEEPS) return aRegisteredChildKeepsTheProgram();
    await aWorkerSweepsNothing();
    await registeredOrphansAreTold();
    const reaped = [];
    const sweeping = sweep({
        enabled: true, interval: '20ms', grace: 0,
        onReport: (report) => reaped.push(...report.reaped),
    });
    assert.strictEqual(sweeping.status().active, true, JSON.stringify(sweeping.status()));
    let expected = 0;
    for (let from = 0; from < COUNT; from += BURST) {
        const burst = Array.from({ length: BURST }, async (_, i) => {
            const code = (from + i) % 256;
            // The shell ends with its code and leaves an orphan that ends a little later.
            const exit = await exitOf('sh', ['-c', `(sleep 0.0${i % 10}) & exit ${code}`]);
            assert.deepStrictEqual([exit.code, exit.signal], [code, null]);
        });
        expected += BURST;
        // Zombies of our own lie about for many intervals and graces: both timers and pollers are late.
        if (from % (BURST * 5) === 0) setTimeout(() => { block(150); setTimeout(() => block(100), 0); }, 1);
        await Promise.all(burst);
    }
    await eventually('every orphan is reaped', () => reaped.length >= expected);
    await eventually('nothing is <defunct>', () => defunct().length === 0);
    assert.strictEqual(sweeping.status().reaped, reaped.length);
    assert(reaped.every((zombie) => zombie.code === 0 && ['sleep', 'sh'].includes(zombie.name)), JSON.stringify(reaped[0]));
    sweeping.stop();
    assert.strictEqual(sweeping.status().reason, 'stopped');
    console.log(`${COUNT} exit events and ${reaped.length} orphans`);
}

function badOptionsAreWarnedOf() {
    const lines = [];
    const log = (line) => lines.push(line);
    for (const options of [undefined, null, 7, 'on', [], { enabled: 'perhaps', log }, { enabled: false, interval: -1, log },
        { interval: NaN, log }, { grace: {}, log }, { interval: '5 minutes', log }, { onReport: 3, log }]) {
        assert.strictEqual(sweep(options).status().active, false);
    }
    // What cannot be shown as JSON, as a text, or at all.
    const loop = {};
    loop.loop = loop;
    const hostile = new Proxy({}, { get() { throw new Error('in a getter'); } });
    for (const value of [1n, Symbol('s'), loop, Object.create(null), hostile]) {
        for (const name of ['enabled', 'interval', 'grace', 'onReport', 'reaper', 'log']) sweep({ [name]: value, log: name === 'log' ? value : () => {} });
        for (const options of [value, { onExit: value, log: () => {} }]) reaper(options).stop();
        sweep(value);
    }
    assert.strictEqual(sweep({ log: () => { throw new Error('no'); }, enabled: 'x' }).status().active, false);
    assert.strictEqual(lines.length, 6, lines.join('\n'));
    assert.strictEqual(sweep({ enabled: true }).status().reason, 'neither PID 1 nor a subreaper: orphans go elsewhere');
}

async function identitiesAreProven() {
    const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
    const exit = new Promise((resolve) => child.on('exit', (code, signal) => resolve(signal)));
    const identity = Process.open(child.pid).identity;
    assert.strictEqual(verify(identity), 'running');
    const held = Process.reopen(identity);
    assert.strictEqual(held.identity, identity);
    assert.throws(() => held.signal('SIGNOSUCH'), { code: 'BAD_ARGUMENT' });
    assert.strictEqual(held.signal('SIGKILL'), true);
    assert.strictEqual(await exit, 'SIGKILL');
    assert.strictEqual(held.signal('SIGKILL'), false);
    assert.strictEqual(verify(identity), 'gone');
    assert.throws(() => Process.reopen(identity), { code: 'GONE' });
    for (const pid of [0, 1, -1, 4294967298, 2.5, '77', null]) {
        assert.throws(() => Process.open(pid), { code: 'BAD_ARGUMENT' }, String(pid));
    }
}

async function theReaperTakesNoExitOfSpawn() {
    const lines = [];
    for (const options of [null, 7, { onExit: 3, log: (line) => lines.push(line) }]) reaper(options).stop();
    assert.strictEqual(lines.length, 1, lines.join('\n'));
    const told = [], reaping = reaper({ onExit: (exit) => told.push(exit) });
    assert.throws(() => reaping.register(process.ppid), { code: 'NOT_A_CHILD' });
    assert.strictEqual((await exitOf('sh', ['-c', 'exit 3'])).code, 3);
    assert.deepStrictEqual([told.length, reaping.stats().registered], [0, 0]);
    // Neither is stopped: an idle reaper keeps no program from ending.
}

async function aGateAdmitsNobodyOnceItDrains() {
    const gate = new Gate();
    const start = gate.enter('start'), upload = gate.enter('upload');
    assert.throws(() => gate.enter('No word'), { code: 'BAD_ARGUMENT' });
    assert.throws(() => gate.enter(7), { code: 'BAD_ARGUMENT' });
    assert.deepStrictEqual([gate.isDraining, gate.isIdle], [false, false]);
    let order = '';
    const work = gate.run('build', async () => { await later(1); order += 'worked '; return 7; });
    const drained = Promise.all([gate.drain(), gate.drain()]).then(() => { order += 'drained'; });
    assert.throws(() => gate.enter('start'), { code: 'DRAINING' });
    await assert.rejects(gate.run('start', () => assert.fail('it was admitted')), { code: 'DRAINING' });
    assert.deepStrictEqual(gate.inFlight().map(({ kind }) => kind).sort(), ['build', 'start', 'upload']);
    assert.strictEqual(await work, 7);
    start.leave();
    start.leave();
    assert.deepStrictEqual([gate.inFlight().length, gate.isIdle], [1, false]);
    upload.leave();
    await drained;
    assert.deepStrictEqual([order, gate.isIdle, gate.inFlight()], ['worked drained', true, []]);
    await gate.drain();
}

/** The README's program, as a program. */
function theReadmeRuns() {
    const readme = fs.readFileSync(path.join(__dirname, 'README.md'), 'utf8');
    const code = readme.split('```js\n')[1].split('```')[0].replace("'sexton'", JSON.stringify(process.env.SEXTON_TEST_PACKAGE ?? __dirname));
    const output = execFileSync(process.execPath, ['-e', code], { encoding: 'utf8', timeout: 20_000 });
    assert.strictEqual(output, 'running true\nSIGTERM gone\n');
}

async function main() {
    if (process.pid === 1) return asInit();
    badOptionsAreWarnedOf();
    await identitiesAreProven();
    await theReaperTakesNoExitOfSpawn();
    await aGateAdmitsNobodyOnceItDrains();
    theReadmeRuns();
    const init = ['--pid', '--fork', '--mount-proc', process.execPath, __filename];
    const env = { ...process.env, SEXTON_TEST_KEEPS: '1' };
    assert.strictEqual(execFileSync('unshare', init, { encoding: 'utf8', env, timeout: 20_000 }), 'told 5\n');
    const idles = { encoding: 'utf8', env: { ...process.env, SEXTON_TEST_IDLES: '1' }, timeout: 20_000, killSignal: 'SIGKILL' };
    const idle = execFileSync('unshare', ['--kill-child', ...init], idles);
    assert.strictEqual(idle, 'swept sleep\nsexton: sweep: null\nswept sleep\n');
    execFileSync('unshare', init, { stdio: 'inherit' });
    console.log(`${path.basename(process.execPath)}: all is well`);
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
