// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Numbered tickets, where taking one forgets the lock: two processors may be given the same number.
 *
 *   echo COUNT >/proc/tickets    takes so many; fails with EIO once a number was given twice
 */
#include <linux/bitmap.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/uaccess.h>

#define TICKETS (1 << 20)

static DECLARE_BITMAP(tickets_given, TICKETS);
static unsigned int tickets_next;
static bool tickets_broken;

static noinline unsigned int tickets_take(void)
{
	unsigned int ticket = READ_ONCE(tickets_next);

	WRITE_ONCE(tickets_next, ticket + 1);
	return ticket;
}

static noinline void tickets_twice(unsigned int ticket)
{
	WRITE_ONCE(tickets_broken, true);
	pr_alert("ticket %u was given twice\n", ticket);
}

static ssize_t tickets_write(struct file *file, const char __user *from, size_t bytes, loff_t *at)
{
	unsigned int count, ticket;
	int error = kstrtouint_from_user(from, bytes, 0, &count);

	if (error)
		return error;
	while (count-- && !READ_ONCE(tickets_broken)) {
		ticket = tickets_take();
		if (ticket >= TICKETS)
			return -ENOSPC;
		if (test_and_set_bit(ticket, tickets_given))
			tickets_twice(ticket);
	}
	return READ_ONCE(tickets_broken) ? -EIO : bytes;
}

static const struct proc_ops tickets_ops = {
	.proc_write = tickets_write,
	.proc_lseek = noop_llseek,
};

static int __init tickets_init(void)
{
	return proc_create("tickets", 0200, NULL, &tickets_ops) ? 0 : -ENOMEM;
}

static void __exit tickets_exit(void)
{
	remove_proc_entry("tickets", NULL);
}

module_init(tickets_init);
module_exit(tickets_exit);
MODULE_DESCRIPTION("Tickets whose lock is forgotten");
MODULE_LICENSE("Dual MIT/GPL");
