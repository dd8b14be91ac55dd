//! The unit of systemd that the daemon runs in: whether it suits what the daemon is told to do at its end.

use std::time::Duration;

use sexton_core::proc;
use sexton_ledger::duration;

use super::{Check, ok, warn};
use crate::config::{OnShutdown, Settings};

/// What a forced end takes after the deadline of a drain.
const FORCED: Duration = Duration::from_secs(6);

/// What the unit says; each word as `systemctl show` prints it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    kill_mode: String,
    notify_access: String,
    /// `None` for ever.
    stop: Option<Duration>,
}

/// Looks at the unit of this process, where it lives in one and systemd can be asked.
pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    let Ok(text) = std::fs::read("/proc/self/cgroup") else { return Vec::new() };
    let name = proc::parse_cgroup(&text).and_then(|path| unit_of(&path).map(str::to_owned));
    name.and_then(|name| ask(&name)).map(|unit| checks(&unit, settings)).unwrap_or_default()
}

/// The service in a cgroup's path.
fn unit_of(path: &str) -> Option<&str> {
    path.rsplit('/').find(|part| part.ends_with(".service"))
}

#[allow(clippy::disallowed_types, reason = "systemd is asked by its own program, and the child is waited for")]
fn ask(name: &str) -> Option<Unit> {
    let mut command = std::process::Command::new("systemctl");
    command.args(["show", "--property=KillMode,NotifyAccess,TimeoutStopUSec", name]);
    let told = command.stdin(std::process::Stdio::null()).output().ok()?;
    if told.status.success() { parse(&String::from_utf8_lossy(&told.stdout)) } else { None }
}

fn parse(text: &str) -> Option<Unit> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let stop = value("TimeoutStopUSec")?;
    let stop = if stop == "infinity" { None } else { Some(span(stop)?) };
    Some(Unit { kill_mode: value("KillMode")?.to_owned(), notify_access: value("NotifyAccess")?.to_owned(), stop })
}

/// A span as systemd prints it: `1min 30s` (`systemd.time(7)`).
fn span(text: &str) -> Option<Duration> {
    let one = |word: &str| {
        let at = word.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = word.split_at(at);
        let seconds = match unit {
            "us" => 0.000_001,
            "ms" => 0.001,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
    };
    text.split_ascii_whitespace().map(one).sum()
}

fn checks(unit: &Unit, settings: &Settings) -> Vec<Check> {
    let mut checks = vec![if unit.kill_mode == "process" {
        ok("unit", "a stop of the service ends the daemon alone")
    } else {
        let told = format!("KillMode={}: a stop of the service ends every process in its cgroup", unit.kill_mode);
        warn("unit", told, "set `KillMode=process`, or instances end with the daemon")
    }];
    if settings.on_shutdown == OnShutdown::Drain {
        checks.push(stop_time(unit, settings.drain_timeout.map(|timeout| timeout.saturating_add(FORCED))));
    }
    checks
}

/// Whether a drain may take as long as it is told to; `budget` is `None` for ever.
fn stop_time(unit: &Unit, budget: Option<Duration>) -> Check {
    let shown = |span: Option<Duration>| span.map_or_else(|| "for ever".to_owned(), duration::format);
    let told = format!("TimeoutStopSec is {}, and a drain may take {}", shown(unit.stop), shown(budget));
    let suffices = unit.stop.is_none_or(|stop| budget.is_some_and(|budget| stop >= budget));
    if suffices {
        ok("stop time", told)
    } else if unit.notify_access == "all" {
        ok("stop time", format!("{told}: more time is asked for while it goes on"))
    } else {
        let hint = "set `NotifyAccess=all`, so that the daemon can ask for more time, or a longer `TimeoutStopSec`";
        warn("stop time", format!("{told}, which systemd cuts off"), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn spans_are_read_as_systemd_prints_them() {
        assert_eq!(span("1min 30s"), Some(Duration::from_secs(90)));
        assert_eq!(span("2min"), Some(Duration::from_secs(120)));
        assert_eq!(span("1.5s"), Some(Duration::from_millis(1_500)));
        assert_eq!(span("1h 500ms"), Some(Duration::from_millis(3_600_500)));
        assert_eq!((span("5"), span("x"), span("5 parsecs")), (None, None, None));
    }

    #[test]
    fn a_unit_is_known_by_its_cgroup_and_its_words() {
        assert_eq!(unit_of("/system.slice/sexton.service/daemon"), Some("sexton.service"));
        assert_eq!((unit_of("/"), unit_of("/user.slice/session-1.scope")), (None, None));
        let text = "KillMode=process\nNotifyAccess=all\nTimeoutStopUSec=infinity\n";
        let unit = Unit { kill_mode: "process".to_owned(), notify_access: "all".to_owned(), stop: None };
        assert_eq!((parse(text), parse("KillMode=process\n")), (Some(unit), None));
    }

    #[test]
    fn a_drain_that_systemd_would_cut_off_is_told() {
        let unit = |notify_access: &str, stop| Unit {
            kill_mode: "process".to_owned(),
            notify_access: notify_access.to_owned(),
            stop: Some(Duration::from_secs(stop)),
        };
        let budget = Some(Duration::from_secs(100));
        assert_eq!(stop_time(&unit("main", 100), budget).grade, Grade::Ok);
        assert_eq!(stop_time(&unit("main", 99), budget).grade, Grade::Warn);
        assert_eq!(stop_time(&unit("main", 99), None).grade, Grade::Warn);
        assert_eq!(stop_time(&unit("all", 99), None).grade, Grade::Ok);
        assert_eq!(stop_time(&Unit { stop: None, ..unit("main", 0) }, None).grade, Grade::Ok);
    }
}
