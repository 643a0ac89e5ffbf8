//! What can be said without a store; `reconciler/tests/layer/infer.rs` has the rest, and
//! `ci/proof dependencies` compares with dpkg-shlibdeps.

use proptest::prelude::*;

use super::*;

fn inferred(text: &str) -> Vec<Inferred> {
    let need = Need::Library { soname: "x".to_owned(), symbol: None };
    let reason = Reason { path: "/x".to_owned(), need };
    let parsed = relation::parse_dependencies(text).expect("valid");
    parsed.into_iter().map(|dependency| Inferred { dependency, reason: reason.clone() }).collect()
}

#[test]
fn what_follows_from_another_dependency_is_left_out() {
    for (text, wanted) in [
        ("b, a (>= 2), a, a (>= 1)", "a (>= 2), b"),
        ("a (>= 2), a (<< 3)", "a (<< 3), a (>= 2)"),
        ("a (= 2), a (>= 1)", "a (= 2)"),
        ("a (= 1), a (>= 2)", "a (= 1), a (>= 2)"),
        ("a | b, a | b, a", "a, a | b"),
        ("a:any, a", "a, a:any"),
        ("a (>= 1.0), a (>= 1.00)", "a (>= 1.0)"),
    ] {
        let found: Vec<_> = simplified(inferred(text)).into_iter().map(|i| i.dependency).collect();
        assert_eq!(relation::print_list(&found), wanted, "{text}");
    }
    let mut depends = relation::parse_dependencies("z, a (>= 3), b").expect("valid");
    add_to(&mut depends, &inferred("a (>= 2), b (>= 1), c"));
    assert_eq!(relation::print_list(&depends), "z, a (>= 3), b (>= 1), c");
}

fn own_program() -> Vec<u8> {
    std::fs::read("/proc/self/exe").expect("this program")
}

#[test]
fn a_program_says_what_it_needs() {
    let elf = elf::read(&own_program()).expect("readable").expect("a program");
    assert!(elf.needed.iter().any(|soname| soname == "libc.so.6"), "{:?}", elf.needed);
    assert!(elf.undefined.iter().any(|name| name.starts_with("write@GLIBC_")));
    let interpreter = elf.interpreter.clone().expect("it is loaded");
    assert!(interpreter.starts_with(b"/lib"));
    assert_eq!(elf.platform.is_64, cfg!(target_pointer_width = "64"));
}

/// The offsets of the section headers in an ELF header of 64 bits, little endian.
const SECTIONS: std::ops::Range<usize> = 0x28..0x30;

#[test]
fn a_program_without_section_headers_still_says_which_libraries() {
    let mut program = own_program();
    let whole = elf::read(&program).expect("readable").expect("a program");
    program[SECTIONS].fill(0);
    program[0x3c..0x40].fill(0);
    let bare = elf::read(&program).expect("readable").expect("a program");
    assert_eq!((bare.needed, bare.undefined), (whole.needed, Vec::new()));
}

#[test]
fn damaged_programs_are_told_from_other_files() {
    assert_eq!(
        elf::read(b"\x7fELF"),
        Err(ElfError::Damaged("it is neither of 32 nor of 64 bits".to_owned()))
    );
    let program = own_program();
    for length in [5, 63, 64, 1000, program.len() / 2] {
        let error = elf::read(&program[..length]).expect_err("cut off");
        assert!(matches!(error, ElfError::Damaged(_)), "{length}: {error}");
    }
}

#[test]
fn where_libraries_are_looked_for() {
    let elf = Elf {
        platform: elf::Platform { is_64: true, machine: 62 },
        soname: None,
        needed: Vec::new(),
        search: vec!["$ORIGIN/../lib/own".to_owned(), "/lib/x".to_owned(), "relative".to_owned()],
        undefined: Vec::new(),
        interpreter: None,
    };
    let found: Vec<_> = search::directories(b"usr/bin/x", &elf)
        .into_iter()
        .map(|directory| String::from_utf8(directory).expect("UTF-8"))
        .collect();
    assert_eq!(
        found,
        [
            "usr/lib/own",
            "usr/lib/x",
            "usr/local/lib/x86_64-linux-gnu",
            "usr/lib/x86_64-linux-gnu",
            "usr/local/lib",
            "usr/lib",
            "usr/lib64",
            "usr/lib32",
            "usr/libx32"
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Any header on any small file.
    #[test]
    fn no_file_makes_the_reader_panic(
        class in 1u8..3,
        endian in 1u8..3,
        rest in proptest::collection::vec(any::<u8>(), 0..4096),
        changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..8),
    ) {
        let mut file = vec![0x7f, b'E', b'L', b'F', class, endian, 1, 0];
        file.extend(&rest);
        let _read = elf::read(&file);
        let mut program = own_program();
        program.truncate(1 << 20);
        for (at, byte) in changes {
            let length = program.len();
            program[at % length] = byte;
        }
        let _read = elf::read(&program);
        let text = String::from_utf8_lossy(&rest);
        for soname in symbols::sonames(&text) {
            let _library = symbols::library(&text, soname);
        }
        let _dependency = symbols::shlibs_dependency(&text, "libx.so.1");
    }
}
