//! A few instructions as bytes, for programs that are mostly immediates.

/// General registers in encoding order.
pub(crate) mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RSP: u8 = 4;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

/// 64-bit code in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Code(pub Vec<u8>);

impl Code {
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    /// `mov r64, imm`, in its shortest form that says it whole.
    pub fn mov(&mut self, register: u8, value: u64) -> &mut Self {
        let high = register >> 3;
        match u32::try_from(value) {
            Ok(short) => {
                if high != 0 {
                    self.raw(&[0x41]);
                }
                self.raw(&[0xb8 | register & 7]).raw(&short.to_le_bytes())
            }
            Err(_) => self.raw(&[0x48 | high, 0xb8 | register & 7]).raw(&value.to_le_bytes()),
        }
    }
    /// `mov [address], imm` of `size` bytes, through RDI and RAX.
    pub fn store(&mut self, address: u64, size: usize, value: u64) -> &mut Self {
        self.mov(reg::RDI, address);
        match size {
            1 => self.raw(&[0xc6, 0x07, value as u8]),
            2 => self.raw(&[0x66, 0xc7, 0x07]).raw(&(value as u16).to_le_bytes()),
            4 => self.raw(&[0xc7, 0x07]).raw(&(value as u32).to_le_bytes()),
            _ => self.mov(reg::RAX, value).raw(&[0x48, 0x89, 0x07]),
        }
    }
    /// `mov rax, [address]` of `size` bytes, through RSI.
    pub fn load(&mut self, address: u64, size: usize) -> &mut Self {
        self.mov(reg::RSI, address);
        match size {
            1 => self.raw(&[0x8a, 0x06]),
            2 => self.raw(&[0x66, 0x8b, 0x06]),
            4 => self.raw(&[0x8b, 0x06]),
            _ => self.raw(&[0x48, 0x8b, 0x06]),
        }
    }
    /// `out dx, al/ax/eax`.
    pub fn out(&mut self, port: u16, size: usize, value: u32) -> &mut Self {
        self.mov(reg::RDX, port.into()).mov(reg::RAX, value.into());
        match size {
            1 => self.raw(&[0xee]),
            2 => self.raw(&[0x66, 0xef]),
            _ => self.raw(&[0xef]),
        }
    }
    /// `in al/ax/eax, dx`.
    pub fn input(&mut self, port: u16, size: usize) -> &mut Self {
        self.mov(reg::RDX, port.into());
        match size {
            1 => self.raw(&[0xec]),
            2 => self.raw(&[0x66, 0xed]),
            _ => self.raw(&[0xed]),
        }
    }
    /// `wrmsr`.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> &mut Self {
        self.mov(reg::RCX, index.into()).mov(reg::RAX, value & 0xffff_ffff).mov(reg::RDX, value >> 32);
        self.raw(&[0x0f, 0x30])
    }
    /// `push imm` of any 64-bit value, through RAX.
    pub fn push(&mut self, value: u64) -> &mut Self {
        self.mov(reg::RAX, value).raw(&[0x50])
    }
}
