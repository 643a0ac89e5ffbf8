//! When rings may move: windows that open at times of the day, freezes between two
//! dates, each in a time zone of its own. The time is data: milliseconds since 1970.
//!
//! Time zones are those of the IANA database that is built in; the machine's are not
//! looked at, so that every host judges alike.

use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::configuration::{CONFIGURATION_FILE, Placed};
use crate::diagnostic::Diagnostic;
use crate::names::{CompositionName, RingName};
use crate::toml_reader::{TableReader, TomlFile};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("{0:?} is no day; write mon, tue, wed, thu, fri, sat or sun")]
    Day(String),
    #[error("{0:?} is no time of the day, as in 22:00")]
    Time(String),
    #[error("{0:?} is no date with a time, as in 2026-12-20 18:00")]
    Date(String),
    #[error("{0:?} is no time zone of the IANA database, as in Europe/Vienna")]
    Zone(String),
}

/// Which rings and templates a window or freeze is for; empty: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    pub rings: Vec<RingName>,
    pub templates: Vec<CompositionName>,
}

impl Scope {
    fn covers(&self, composition: &CompositionName, ring: &RingName) -> bool {
        (self.rings.is_empty() || self.rings.contains(ring))
            && (self.templates.is_empty() || self.templates.contains(composition))
    }
}

/// A time of the day in which rings move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The days on which it opens; empty: every day.
    pub days: Vec<Weekday>,
    pub from: Time,
    /// On the next day where it is not after `from`.
    pub to: Time,
    pub zone: TimeZone,
    pub scope: Scope,
}

/// Dates between which nothing moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    pub from_ms: u64,
    pub to_ms: u64,
    pub reason: String,
    pub scope: Scope,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    pub windows: Vec<Window>,
    pub freezes: Vec<Freeze>,
}

/// Whether a ring may move now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    Open,
    /// `until_ms`: when to ask again; `None`: never, as things stand.
    Closed {
        until_ms: Option<u64>,
        freeze: Option<String>,
    },
}

impl Schedule {
    /// Whether a ring of a composition may move at `now_ms`.
    pub fn opening(&self, composition: &CompositionName, ring: &RingName, now_ms: u64) -> Opening {
        let frozen = self.freezes.iter().find(|freeze| {
            freeze.scope.covers(composition, ring)
                && (freeze.from_ms..freeze.to_ms).contains(&now_ms)
        });
        if let Some(freeze) = frozen {
            let (until_ms, freeze) = (Some(freeze.to_ms), Some(freeze.reason.clone()));
            return Opening::Closed { until_ms, freeze };
        }
        let mut until_ms = None;
        let mut any = false;
        for window in self.windows.iter().filter(|w| w.scope.covers(composition, ring)) {
            any = true;
            match window.state(now_ms) {
                Ok(()) => return Opening::Open,
                Err(Some(opens)) => {
                    until_ms = Some(until_ms.map_or(opens, |until: u64| until.min(opens)));
                }
                Err(None) => {}
            }
        }
        if any { Opening::Closed { until_ms, freeze: None } } else { Opening::Open }
    }
}

impl Window {
    /// `Ok` where it is open; else when it opens.
    fn state(&self, now_ms: u64) -> Result<(), Option<u64>> {
        let Some(now) =
            i64::try_from(now_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())
        else {
            return Err(None);
        };
        let today = self.zone.to_datetime(now).date();
        let mut next = None;
        // One that opened yesterday may still be open; the next opens within a week.
        for offset in -1..=8 {
            let Ok(day) = today.checked_add(Span::new().days(offset)) else { continue };
            if !self.days.is_empty() && !self.days.contains(&day.weekday()) {
                continue;
            }
            let Some((from, to)) = self.on(day) else { continue };
            if from <= now_ms && now_ms < to {
                return Ok(());
            }
            if from > now_ms {
                next = Some(next.map_or(from, |next: u64| next.min(from)));
            }
        }
        Err(next)
    }

    /// When the window of a day opens and closes.
    fn on(&self, day: Date) -> Option<(u64, u64)> {
        let end = if self.to > self.from { day } else { day.tomorrow().ok()? };
        let at = |date: Date, time: Time| milliseconds(date.to_datetime(time), &self.zone);
        Some((at(day, self.from)?, at(end, self.to)?))
    }
}

/// A local time that the clocks skip is the one after the gap; of one that they
/// show twice it is the first.
fn milliseconds(time: DateTime, zone: &TimeZone) -> Option<u64> {
    u64::try_from(zone.to_timestamp(time).ok()?.as_millisecond()).ok()
}

struct Day(Weekday);

impl FromStr for Day {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        Ok(Day(match text {
            "mon" => Weekday::Monday,
            "tue" => Weekday::Tuesday,
            "wed" => Weekday::Wednesday,
            "thu" => Weekday::Thursday,
            "fri" => Weekday::Friday,
            "sat" => Weekday::Saturday,
            "sun" => Weekday::Sunday,
            _ => return Err(ScheduleError::Day(text.chars().take(64).collect())),
        }))
    }
}

struct Clock(Time);

impl FromStr for Clock {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let error = || ScheduleError::Time(text.chars().take(64).collect());
        text.parse().map(Clock).map_err(|_| error())
    }
}

struct Moment(DateTime);

impl FromStr for Moment {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let error = || ScheduleError::Date(text.chars().take(64).collect());
        text.parse().map(Moment).map_err(|_| error())
    }
}

struct Zone(TimeZone);

impl FromStr for Zone {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let error = || ScheduleError::Zone(text.chars().take(64).collect());
        TimeZone::get(text).map(Zone).map_err(|_| error())
    }
}

/// Reads `[[rollout.window]]` and `[[rollout.freeze]]`.
pub(crate) struct ScheduleReader<'r, 'f> {
    pub file: &'r mut TomlFile<'f>,
    pub rings: &'r [RingName],
    /// The templates that windows and freezes name.
    pub named: Vec<Placed<CompositionName>>,
}

impl ScheduleReader<'_, '_> {
    pub fn read(&mut self, reader: &mut TableReader<'_, '_>) -> Schedule {
        let mut schedule = Schedule::default();
        for (table, at) in reader.tables(self.file, "window") {
            let mut reader = TableReader::new(table, at, "a [[rollout.window]]");
            schedule.windows.extend(self.window(&mut reader));
            reader.finish(self.file);
        }
        for (table, at) in reader.tables(self.file, "freeze") {
            let mut reader = TableReader::new(table, at, "a [[rollout.freeze]]");
            schedule.freezes.extend(self.freeze(&mut reader));
            reader.finish(self.file);
        }
        schedule
    }

    fn window(&mut self, reader: &mut TableReader<'_, '_>) -> Option<Window> {
        let days = reader.some_list::<Day>(self.file, "days").unwrap_or_default();
        let from = reader.required::<Clock>(self.file, "from");
        let to = reader.required::<Clock>(self.file, "to");
        let zone = reader.required::<Zone>(self.file, "zone");
        let scope = self.scope(reader);
        let (from, to, zone) = (from?.value.0, to?.value.0, zone?.value.0);
        Some(Window {
            days: days.into_iter().map(|day| day.value.0).collect(),
            from,
            to,
            zone,
            scope,
        })
    }

    fn freeze(&mut self, reader: &mut TableReader<'_, '_>) -> Option<Freeze> {
        let from = reader.required::<Moment>(self.file, "from");
        let to = reader.required::<Moment>(self.file, "to");
        let zone = reader.required::<Zone>(self.file, "zone");
        let reason = reader.parsed::<String>(self.file, "reason");
        let scope = self.scope(reader);
        let (from, to, zone) = (from?, to?, zone?.value.0);
        let from_ms = milliseconds(from.value.0, &zone)?;
        let to_ms = milliseconds(to.value.0, &zone)?;
        if to_ms <= from_ms {
            let message = "the freeze ends before it begins";
            let fault = Diagnostic::error(CONFIGURATION_FILE, to.line, "value", message);
            self.file.diagnostics.push(fault);
            return None;
        }
        let reason = reason.map(|reason| reason.value).unwrap_or_default();
        Some(Freeze { from_ms, to_ms, reason, scope })
    }

    fn scope(&mut self, reader: &mut TableReader<'_, '_>) -> Scope {
        let mut scope = Scope::default();
        for Placed { value, line } in
            reader.some_list::<RingName>(self.file, "rings").unwrap_or_default()
        {
            if !self.rings.contains(&value) {
                let message = format!("there is no ring {value}");
                let fault = Diagnostic::error(CONFIGURATION_FILE, line, "unknown-ring", message);
                self.file.diagnostics.push(fault);
            }
            scope.rings.push(value);
        }
        let templates = reader.some_list::<CompositionName>(self.file, "templates");
        let templates = templates.unwrap_or_default();
        scope.templates = templates.iter().map(|named| named.value.clone()).collect();
        self.named.extend(templates);
        scope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        let time: Timestamp = text.parse().expect("a time");
        u64::try_from(time.as_millisecond()).expect("after 1970")
    }

    fn window(days: &[Weekday], from: &str, to: &str) -> Window {
        Window {
            days: days.to_vec(),
            from: from.parse().expect("a time"),
            to: to.parse().expect("a time"),
            zone: TimeZone::get("Europe/Vienna").expect("a zone"),
            scope: Scope::default(),
        }
    }

    fn opening(schedule: &Schedule, at: &str) -> Opening {
        let composition = "web".parse().expect("valid");
        schedule.opening(&composition, &"all".parse().expect("valid"), ms(at))
    }

    fn closed_until(at: &str) -> Opening {
        Opening::Closed { until_ms: Some(ms(at)), freeze: None }
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_opens() {
        let windows = vec![window(&[Weekday::Friday], "22:00", "04:00")];
        let schedule = Schedule { windows, freezes: Vec::new() };
        // Friday, 27 November 2026; Vienna is one hour ahead of UTC in winter.
        assert_eq!(
            opening(&schedule, "2026-11-27T20:59:59Z"),
            closed_until("2026-11-27T21:00:00Z")
        );
        assert_eq!(opening(&schedule, "2026-11-27T21:00:00Z"), Opening::Open);
        assert_eq!(opening(&schedule, "2026-11-28T02:59:59Z"), Opening::Open);
        assert_eq!(
            opening(&schedule, "2026-11-28T03:00:00Z"),
            closed_until("2026-12-04T21:00:00Z")
        );
    }

    #[test]
    fn summer_time_moves_the_opening() {
        let windows = vec![window(&[], "02:30", "05:00")];
        let schedule = Schedule { windows, freezes: Vec::new() };
        // On 29 March 2026 the clocks go from 2:00 to 3:00: 2:30 is 3:30 that day.
        assert_eq!(
            opening(&schedule, "2026-03-29T00:30:00Z"),
            closed_until("2026-03-29T01:30:00Z")
        );
        assert_eq!(opening(&schedule, "2026-07-01T00:30:00Z"), Opening::Open);
    }

    #[test]
    fn a_freeze_wins_over_an_open_window() {
        let freeze = Freeze {
            from_ms: ms("2026-12-20T00:00:00Z"),
            to_ms: ms("2027-01-02T00:00:00Z"),
            reason: "the year's end".to_owned(),
            scope: Scope { rings: Vec::new(), templates: vec!["web".parse().expect("valid")] },
        };
        let schedule =
            Schedule { windows: vec![window(&[], "00:00", "00:00")], freezes: vec![freeze] };
        assert_eq!(opening(&schedule, "2026-12-19T23:59:59Z"), Opening::Open);
        let until_ms = Some(ms("2027-01-02T00:00:00Z"));
        let closed = Opening::Closed { until_ms, freeze: Some("the year's end".to_owned()) };
        assert_eq!(opening(&schedule, "2026-12-24T12:00:00Z"), closed);
        let other = ("sql".parse().expect("valid"), "all".parse().expect("valid"));
        let at = ms("2026-12-24T12:00:00Z");
        assert_eq!(schedule.opening(&other.0, &other.1, at), Opening::Open);
    }
}
