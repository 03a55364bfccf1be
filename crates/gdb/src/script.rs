//! What a gdb that we start ourselves is told first.

use std::path::Path;

/// An ELF file with symbols, and where its parts are in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolFile<'a> {
    /// The file.
    pub path: &'a Path,
    /// Where it is.
    pub place: SymbolPlace,
}

/// Where what a file describes is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SymbolPlace {
    /// All of it so many bytes from where the file says.
    Moved(i64),
    /// Its sections at these addresses, by name: a relocatable file such as a kernel module.
    Sections(Vec<(String, u64)>),
}

/// A gdb script that connects to `address` (from [`crate::Listener::address`]), with symbols from
/// the given files.
pub fn startup_script(address: &str, symbols: &[SymbolFile<'_>]) -> String {
    let mut script = String::from(
        "set confirm off\n\
         set pagination off\n\
         set architecture i386:x86-64\n\
         set breakpoint always-inserted on\n\
         set remotetimeout 120\n\
         set tcp connect-timeout 10\n\
         set backtrace past-main on\n\
         set backtrace limit 64\n",
    );
    for SymbolFile { path, place } in symbols {
        let file = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        script += &format!("add-symbol-file \"{file}\"");
        match place {
            SymbolPlace::Moved(0) => {}
            SymbolPlace::Moved(offset) => script += &format!(" -o {offset:#x}"),
            SymbolPlace::Sections(sections) => {
                sections.iter().for_each(|(name, at)| script += &format!(" -s {name} {at:#x}"));
            }
        }
        script.push('\n');
    }
    script += &format!("target remote {address}\n");
    script + COMMANDS
}

/// After a `monitor` command the machine may stand elsewhere. gdb must forget registers and memory,
/// and also the values of watched expressions, which it compares with to tell whether one changed:
/// taking a watchpoint out and in makes it read the value anew. That takes gdb's Python; a gdb
/// without it (there is no `$_any_caller_is` then) may miss the first change after a seek.
const COMMANDS: &str = "\
define hookpost-monitor
maintenance flush register-cache
maintenance flush dcache
if !$_isvoid($_any_caller_is)
python
for watch in gdb.breakpoints():
    if watch.enabled and watch.type not in (gdb.BP_BREAKPOINT, gdb.BP_HARDWARE_BREAKPOINT):
        watch.enabled = False
        watch.enabled = True
end
end
end
define seek
monitor seek $arg0
frame
end
document seek
Go to a place in history: an instruction count, a share (50%), guest time (12.5s), start, end,
or a bookmark's name.
end
define when
monitor when
end
document when
Where in history this is.
end
set confirm on
";
