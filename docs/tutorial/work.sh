insmod ledger.ko
for name in alice bob carol dave; do echo open $name >/proc/ledger; done
echo pay alice 100 >/proc/ledger
echo rename bob robert-of-huntingdon >/proc/ledger
for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum; done
sleep 5
echo all is well
