insmod tickets.ko
echo 200000 >/proc/tickets & one=$!
echo 200000 >/proc/tickets & other=$!
wait $one && wait $other
