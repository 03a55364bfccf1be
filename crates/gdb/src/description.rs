//! The target description: which registers there are, as gdb's "Target Descriptions" appendix says.
//!
//! The features named `org.gnu.gdb.i386.*` are the ones gdb has code for: from them it makes
//! `$xmm0`, `$ymm0` (low half from the SSE feature, high half from the AVX one), `$fs_base` and the
//! like. The system registers are in a feature of our own, with the bits of the control registers
//! spelled out.

use crate::registers::{self, AVX, CORE, SEGMENTS, SSE, SYSTEM};
use std::fmt::Write;
use std::sync::LazyLock;

static XML: LazyLock<String> = LazyLock::new(compose);

/// The description, an XML document.
pub fn target_description() -> &'static str {
    &XML
}

/// Bits of RFLAGS (SDM vol. 1, 3.4.3).
const EFLAGS: &[(&str, u32)] = &[
    ("CF", 0),
    ("", 1),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];
/// Bits of MXCSR (SDM vol. 1, 10.2.3).
const MXCSR: &[(&str, u32)] = &[
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];
/// Bits of CR0 (SDM vol. 3A, 2.5).
const CR0: &[(&str, u32)] = &[
    ("PE", 0),
    ("MP", 1),
    ("EM", 2),
    ("TS", 3),
    ("ET", 4),
    ("NE", 5),
    ("WP", 16),
    ("AM", 18),
    ("NW", 29),
    ("CD", 30),
    ("PG", 31),
];
/// Bits of CR4 (SDM vol. 3A, 2.5).
const CR4: &[(&str, u32)] = &[
    ("VME", 0),
    ("PVI", 1),
    ("TSD", 2),
    ("DE", 3),
    ("PSE", 4),
    ("PAE", 5),
    ("MCE", 6),
    ("PGE", 7),
    ("PCE", 8),
    ("OSFXSR", 9),
    ("OSXMMEXCPT", 10),
    ("UMIP", 11),
    ("LA57", 12),
    ("VMXE", 13),
    ("SMXE", 14),
    ("FSGSBASE", 16),
    ("PCIDE", 17),
    ("OSXSAVE", 18),
    ("SMEP", 20),
    ("SMAP", 21),
    ("PKE", 22),
];
/// Bits of IA32_EFER (SDM vol. 3A, 2.2.1).
const EFER: &[(&str, u32)] = &[("SCE", 0), ("LME", 8), ("LMA", 10), ("NXE", 11), ("SVME", 12)];

/// The members of gdb's own type for an XMM register.
const VEC128: &str = r#"<vector id="v8bf16" type="bfloat16" count="8"/>
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v8_bfloat16" type="v8bf16"/>
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
"#;

fn flags(id: &str, bytes: u32, bits: &[(&str, u32)]) -> String {
    let mut text = format!("<flags id=\"{id}\" size=\"{bytes}\">\n");
    for (name, bit) in bits {
        let _ = writeln!(text, "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>");
    }
    text + "</flags>\n"
}

fn types(feature: &str) -> String {
    match feature {
        CORE => flags("i386_eflags", 4, EFLAGS),
        SSE => VEC128.to_owned() + &flags("i386_mxcsr", 4, MXCSR),
        SYSTEM => flags("x86_cr0", 8, CR0) + &flags("x86_cr4", 8, CR4) + &flags("x86_efer", 8, EFER),
        _ => String::new(),
    }
}

fn compose() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target>\n\
         <architecture>i386:x86-64</architecture>\n<osabi>none</osabi>\n",
    );
    for feature in [CORE, SSE, SEGMENTS, AVX, SYSTEM] {
        let _ = write!(xml, "<feature name=\"{feature}\">\n{}", types(feature));
        for (number, entry) in registers::layout().enumerate() {
            if entry.feature != feature {
                continue;
            }
            let (name, kind, bits) = (entry.name, entry.kind, entry.bytes() * 8);
            let _ =
                write!(xml, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{number}\"");
            if !entry.group.is_empty() {
                let _ = write!(xml, " group=\"{}\"", entry.group);
            }
            xml.push_str("/>\n");
        }
        xml.push_str("</feature>\n");
    }
    xml + "</target>\n"
}
