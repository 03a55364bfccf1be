//! `replay --bisect` on divergences that are there on purpose: it has to name the very instruction,
//! or say truthfully that the recording is what differs.

mod place;

use place::Place;
use recording::{EventKind, Recording, Writer};
use serde_json::Value;

const WORK: &str = "seq 1 3000 | gzip | md5sum; read line; echo \"$line\" | md5sum";
/// Within the guest's work, in no round place.
const FAULT: u64 = 812_345_678;

fn record(place: &Place, more: &[&str]) -> Value {
    let mut words = vec!["record", "-o", "./rec", "--memory", "128M", "--json", "--console", "shown"];
    words.extend(["--hash-every", "4000000", "--checkpoint-every", "50000000"]);
    words.extend(more);
    words.extend(["--", WORK]);
    let done = place.hindsight(&words).with_status(0).json();
    assert!(done["instructions"].as_u64().unwrap() > FAULT + 100_000_000, "{done}");
    done
}

fn bisect(place: &Place, recording: &str, more: &[&str]) -> Value {
    let mut words = vec!["replay", recording, "--bisect", "--json"];
    words.extend(more);
    place.hindsight(&words).with_status(4).json()["bisect"].clone()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect()
}

#[test]
fn the_instruction_at_which_an_engine_errs_is_named() {
    let Some(place) = Place::new() else { return };
    record(&place, &[]);
    let fault = FAULT.to_string();
    for option in ["--fault", "--fault-of-history"] {
        let found = bisect(&place, "./rec", &[option, &fault]);
        assert_eq!((&found["from"], &found["to"]), (&(FAULT - 1).into(), &FAULT.into()), "{option}: {found}");
        assert_eq!(found["cause"]["kind"], "instruction");
        assert_eq!(names(&found["differences"]["registers"]), ["dr0"]);
        assert_eq!(found["differences"]["pages"], 1);
        assert!(found["first"].as_str().unwrap().ends_with("does not lead to what was recorded"), "{found}");
        assert!(found["second"].as_str().unwrap().ends_with("leads to what was recorded"), "{found}");
    }
    // For people, on standard error, with the line about the divergence.
    let told =
        place.hindsight(&["replay", "./rec", "--bisect", "--console", "none", "--fault-of-history", &fault]);
    let told = told.with_status(4).stderr;
    assert!(told.contains(&format!("the one at position {}", FAULT - 1)), "{told}");
    assert!(told.contains("register dr0") && told.contains("differs from the recording between"), "{told}");
}

#[test]
fn a_machine_that_erred_while_it_recorded_is_told_from_an_engine_that_errs() {
    let Some(place) = Place::new() else { return };
    record(&place, &["--fault", &FAULT.to_string()]);
    let found = bisect(&place, "./rec", &[]);
    assert_eq!(found["cause"]["kind"], "recording", "{found}");
    assert_eq!(found["cause"]["resumes"], true, "{found}");
    let (from, to) = (found["from"].as_u64().unwrap(), found["to"].as_u64().unwrap());
    assert!(from < FAULT && FAULT <= to && to - from <= 4_000_000, "{found}");
    assert_eq!(names(&found["differences"]["registers"]), ["dr0"]);
    assert_eq!(found["differences"]["pages"], 1);
    assert_eq!(found["differences"]["devices"], Value::Array(vec![]));
}

#[test]
fn a_recording_with_another_input_than_was_given_is_blamed_with_that_input() {
    let Some(place) = Place::new() else { return };
    let words = ["record", "-o", "./rec", "--memory", "128M", "--hash-every", "4000000", "--", WORK];
    place.piped(&words, b"abcdefg\n").with_status(0);
    // The same recording, whole in every respect, but with another letter.
    let recording = Recording::open(&place.path("rec")).unwrap();
    let folder = place.path("forged");
    std::fs::create_dir(&folder).unwrap();
    let manifest = recording.manifest();
    let completion = manifest.completion().unwrap().clone();
    let fresh = recording::Manifest::new(timeline::MACHINE_VERSION, manifest.guest.clone()).unwrap();
    let mut writer = Writer::create(&folder, fresh).unwrap();
    writer.name_inputs(manifest.input_kinds.clone()).unwrap();
    let mut forged = None;
    for event in recording.events() {
        let event = event.unwrap();
        match event.kind {
            EventKind::Input { kind, mut payload } => {
                if let Some(letter) = payload.iter().position(|byte| *byte == b'd') {
                    payload[letter] = b'D';
                    forged = Some(event.at.count());
                }
                writer.input(event.at, kind, &payload);
            }
            EventKind::Hash(hash) => writer.hash(event.at, &hash),
            EventKind::Reached => writer.reached(event.at),
            EventKind::End(_) => {}
        }
    }
    let forged = forged.expect("the input is in the log");
    writer.finish(completion.at, completion.end, completion.hash, completion.guest_ns).unwrap();

    place.hindsight(&["replay", "./rec", "--console", "none"]).with_status(0);
    let found = bisect(&place, "./forged", &[]);
    assert_eq!(found["cause"]["kind"], "recording", "{found}");
    let (from, to) = (found["from"].as_u64().unwrap(), found["to"].as_u64().unwrap());
    assert!(from <= forged && forged < to, "{found}");
    let inputs = found["inputs"].as_array().unwrap();
    assert!(
        inputs.iter().any(|input| input.as_str().unwrap().starts_with(&format!("at {forged}: Serial"))),
        "{found}"
    );
}
