// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * A ledger of accounts, with a bug. The text that goes with it is docs/tutorial.md.
 *
 *   echo "open NAME"        >/proc/ledger    a new account
 *   echo "rename OLD NEW"   >/proc/ledger    another name for an account
 *   echo "pay NAME AMOUNT"  >/proc/ledger    money for an account
 *
 * Every three seconds a timer goes through all accounts and adds them up.
 */
#include <linux/init.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/uaccess.h>

#define NAME_BYTES 16
#define AUDIT_EVERY (3 * HZ)

struct account {
	char name[NAME_BYTES];
	struct list_head all;
	long balance;
};

static LIST_HEAD(ledger_accounts);
static DEFINE_SPINLOCK(ledger_lock);
static long ledger_total;
module_param(ledger_total, long, 0444);

static struct account *ledger_find(const char *name)
{
	struct account *account;

	list_for_each_entry(account, &ledger_accounts, all)
		if (!strcmp(account->name, name))
			return account;
	return NULL;
}

static noinline int ledger_open(const char *name)
{
	struct account *account = kzalloc(sizeof(*account), GFP_KERNEL);

	if (!account)
		return -ENOMEM;
	strscpy(account->name, name, NAME_BYTES);
	spin_lock_bh(&ledger_lock);
	list_add_tail(&account->all, &ledger_accounts);
	spin_unlock_bh(&ledger_lock);
	return 0;
}

static noinline int ledger_rename(const char *old, const char *new)
{
	struct account *account;
	size_t i = 0;

	spin_lock_bh(&ledger_lock);
	account = ledger_find(old);
	if (account)
		do {
			account->name[i] = new[i];
		} while (new[i++]);
	spin_unlock_bh(&ledger_lock);
	return account ? 0 : -ENOENT;
}

static noinline int ledger_pay(const char *name, long amount)
{
	struct account *account;

	spin_lock_bh(&ledger_lock);
	account = ledger_find(name);
	if (account)
		account->balance += amount;
	spin_unlock_bh(&ledger_lock);
	return account ? 0 : -ENOENT;
}

static ssize_t ledger_write(struct file *file, const char __user *from, size_t bytes, loff_t *at)
{
	char line[128], word[3][64] = {};
	int words, error;
	long amount;

	if (bytes >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, bytes))
		return -EFAULT;
	line[bytes] = 0;
	words = sscanf(line, "%63s %63s %63s", word[0], word[1], word[2]);
	if (words == 2 && !strcmp(word[0], "open"))
		error = ledger_open(word[1]);
	else if (words == 3 && !strcmp(word[0], "rename"))
		error = ledger_rename(word[1], word[2]);
	else if (words == 3 && !strcmp(word[0], "pay") && !kstrtol(word[2], 0, &amount))
		error = ledger_pay(word[1], amount);
	else
		error = -EINVAL;
	return error ? error : bytes;
}

static const struct proc_ops ledger_ops = {
	.proc_write = ledger_write,
	.proc_lseek = noop_llseek,
};

static void ledger_audit(struct timer_list *timer)
{
	struct account *account;
	long total = 0;

	spin_lock(&ledger_lock);
	list_for_each_entry(account, &ledger_accounts, all)
		total += account->balance;
	ledger_total = total;
	spin_unlock(&ledger_lock);
	mod_timer(timer, jiffies + AUDIT_EVERY);
}

static DEFINE_TIMER(ledger_timer, ledger_audit);

static int __init ledger_init(void)
{
	if (!proc_create("ledger", 0200, NULL, &ledger_ops))
		return -ENOMEM;
	mod_timer(&ledger_timer, jiffies + AUDIT_EVERY);
	return 0;
}

static void __exit ledger_exit(void)
{
	struct account *account, *next;

	del_timer_sync(&ledger_timer);
	remove_proc_entry("ledger", NULL);
	list_for_each_entry_safe(account, next, &ledger_accounts, all)
		kfree(account);
}

module_init(ledger_init);
module_exit(ledger_exit);
MODULE_DESCRIPTION("A ledger with a bug");
MODULE_LICENSE("Dual MIT/GPL");
