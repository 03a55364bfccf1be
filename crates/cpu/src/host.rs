//! What the host's processor can do, and whose it is.

use std::arch::x86_64::__cpuid;
use x86::HostFeatures;

/// The vendor of the host's processor, as CPUID's leaf 0 spells it.
pub fn host_vendor() -> String {
    let leaf = __cpuid(0);
    let text = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks the host's CPUID, as far as the operating system lets the features be used.
pub fn host_features() -> HostFeatures {
    use std::arch::is_x86_feature_detected as has;
    HostFeatures {
        cmpxchg16b: has!("cmpxchg16b"),
        sse3: has!("sse3"),
        ssse3: has!("ssse3"),
        sse4_1: has!("sse4.1"),
        sse4_2: has!("sse4.2"),
        popcnt: has!("popcnt"),
        avx: has!("avx"),
        avx2: has!("avx2"),
        bmi1: has!("bmi1"),
        bmi2: has!("bmi2"),
        lzcnt: has!("lzcnt"),
        f16c: has!("f16c"),
        fma: has!("fma"),
        movbe: has!("movbe"),
        aes: has!("aes"),
        pclmulqdq: has!("pclmulqdq"),
        sha: has!("sha"),
    }
}
