//! Dates of the proleptic Gregorian calendar, by arithmetic.
//!
//! Years are counted from March, so that the leap day is a year's last and months have lengths that
//! follow a line (153 days in every five months).

/// A date and time of day, without time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

const DAY: i64 = 86_400;
const DAYS_IN_400_YEARS: i64 = 146_097;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;

impl Civil {
    /// The date `seconds` after the start of 1970.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let (days, tod) = (seconds.div_euclid(DAY) + EPOCH, seconds.rem_euclid(DAY));
        let (era, of_era) = (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: 400 * era + year_of_era + i64::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            hour: tod / 3600,
            minute: tod / 60 % 60,
            second: tod % 60,
        }
    }

    /// Seconds since the start of 1970. Fields out of range carry over.
    pub(super) fn to_unix(self) -> i64 {
        let months = self.month - 3;
        let year = self.year + months.div_euclid(12);
        let from_march = months.rem_euclid(12);
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * from_march + 2) / 5 + self.day - 1;
        let days = era * DAYS_IN_400_YEARS + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH;
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// Day of the week of a Unix time: 1 for Sunday to 7 for Saturday.
    pub(super) fn weekday(seconds: i64) -> i64 {
        (seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_eight_centuries_goes_there_and_back() {
        let mut previous = Civil::from_unix(-12_000 * DAY);
        for day in -11_999..290_000 {
            let civil = Civil::from_unix(day * DAY + 3661);
            assert_eq!(civil.to_unix(), day * DAY + 3661);
            let next_day = civil.day == previous.day + 1 && civil.month == previous.month;
            assert!(next_day || civil.day == 1, "{previous:?} then {civil:?}");
            previous = civil;
        }
    }

    #[test]
    fn known_dates_are_right() {
        let civil = Civil::from_unix(1_709_210_096); // date -ud 2024-02-29T12:34:56
        assert_eq!((civil.year, civil.month, civil.day), (2024, 2, 29));
        assert_eq!((civil.hour, civil.minute, civil.second), (12, 34, 56));
        assert_eq!(Civil::weekday(1_709_210_096), 5, "a Thursday");
    }
}
