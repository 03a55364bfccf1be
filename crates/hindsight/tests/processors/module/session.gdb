tbreak tickets_twice
reverse-continue
watch -location tickets_next
set $after = tickets_next
reverse-continue
while tickets_next < $after
  set $after = tickets_next
  reverse-continue
end
set $loser = $_thread
printf "the racing store is in tickets_take: %d, and takes back: %d\n", $pc > (long)tickets_take && $pc < (long)tickets_take + 20, tickets_next >= $after
reverse-continue
printf "the store before is another's: %d, of this ticket or a later one: %d\n", $_thread != $loser, tickets_next >= $after - 1
delete
break tickets_take
reverse-continue
while $_thread != $loser
  reverse-continue
end
printf "the load is the loser's: %d, of the number that both give: %d\n", $_thread == $loser, tickets_next == $after - 1
kill
quit
