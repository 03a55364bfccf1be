backtrace 12
frame function ledger_audit
info locals
tbreak ledger_audit
reverse-continue
print *(struct account *)((char *)ledger_accounts.next - 16)
print *(struct account *)((char *)ledger_accounts.next->next - 16)
watch -location ledger_accounts.next->next->next
reverse-continue
backtrace 3
info locals
delete
tbreak ledger_rename
reverse-continue
print new
monitor bookmark the-cause
monitor when
monitor branch
set var ((char *)new)[15] = 0
continue
monitor console 2
monitor history
kill
