package main

import (
	"fmt"
	"math"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"memfs/mm"
)

// An option of -o is, in this order, a word of mount(8) that is a flag of mount(2), a word that changes nothing here, a
// word that is refused with its reason, or a flag of `memfs mount` without its dashes. What comes later wins.

// vfsFlags are the MS_ bits of mount(2) that the words of mount(8) come to.
type vfsFlags struct {
	bits  uintptr
	given uintptr // those that a word named, set or cleared
}

// vfsWord is what a word of mount(8) does to the flags.
type vfsWord struct{ clear, set uintptr }

const (
	atimeFlags  = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
	secureFlags = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
)

var vfsWords = map[string]vfsWord{
	"rw": {unix.MS_RDONLY, 0}, "ro": {0, unix.MS_RDONLY},
	"suid": {unix.MS_NOSUID, 0}, "nosuid": {0, unix.MS_NOSUID},
	"dev": {unix.MS_NODEV, 0}, "nodev": {0, unix.MS_NODEV},
	"exec": {unix.MS_NOEXEC, 0}, "noexec": {0, unix.MS_NOEXEC},
	"async": {unix.MS_SYNCHRONOUS, 0}, "sync": {0, unix.MS_SYNCHRONOUS},
	"dirsync": {0, unix.MS_DIRSYNC},
	"atime":   {unix.MS_NOATIME, 0}, "noatime": {atimeFlags, unix.MS_NOATIME},
	"diratime": {unix.MS_NODIRATIME, 0}, "nodiratime": {0, unix.MS_NODIRATIME},
	"relatime": {atimeFlags, unix.MS_RELATIME}, "norelatime": {unix.MS_RELATIME, 0},
	"strictatime": {atimeFlags, unix.MS_STRICTATIME}, "nostrictatime": {unix.MS_STRICTATIME, 0},
	"symfollow": {unix.MS_NOSYMFOLLOW, 0}, "nosymfollow": {0, unix.MS_NOSYMFOLLOW},
	"defaults": {unix.MS_RDONLY | secureFlags | unix.MS_SYNCHRONOUS, 0},
	// Who lets users mount means no setuid programs of theirs, unless a later word says so.
	"user": {0, secureFlags}, "users": {0, secureFlags},
	"owner": {0, unix.MS_NOSUID | unix.MS_NODEV}, "group": {0, unix.MS_NOSUID | unix.MS_NODEV},
}

// apply does what a word says. False if it is no such word.
func (v *vfsFlags) apply(word string) bool {
	w, ok := vfsWords[word]
	if !ok {
		return false
	}
	v.bits = v.bits&^w.clear | w.set
	if word != "defaults" {
		v.given |= w.clear | w.set
	}
	return true
}

// forUser says why a mount through fusermount3 cannot have these flags, in the word that asks for too much.
func (v *vfsFlags) forUser() error {
	for _, f := range []struct {
		flag uintptr
		set  bool
		word string
	}{
		{unix.MS_NOSUID, false, "suid"}, {unix.MS_NODEV, false, "dev"}, {unix.MS_NOSYMFOLLOW, true, "nosymfollow"},
	} {
		if v.given&f.flag != 0 && v.bits&f.flag != 0 == f.set {
			return usageError("-o %s: only root's mounts can have that; leave it out", f.word)
		}
	}
	return nil
}

// ignoredWords change nothing here: they are for mount(8) itself, for fstab's readers, or ask for what holds anyway. huge
// and mpol say where tmpfs takes its pages from, and a file's contents and size do not show it.
var ignoredWords = map[string]bool{
	"auto": true, "noauto": true, "nouser": true, "nogroup": true, "noowner": true, "nofail": true, "fail": true,
	"_netdev": true, "comment": true, "uhelper": true, "helper": true, "silent": true, "loud": true, "nomand": true,
	"lazytime": true, "nolazytime": true, "iversion": true, "noiversion": true, // all times are in memory only
	"swap": true, "inode64": true, "huge": true, "mpol": true, "default_permissions": true,
}

// kernelWords are what the mount table shows of a FUSE mount, which mount(8) hands on to a remount.
var kernelWords = map[string]bool{
	"user_id": true, "group_id": true, "rootmode": true, "max_read": true, "blksize": true, "seclabel": true,
}

// refusedWords are known elsewhere and would promise what is not kept.
var refusedWords = map[string]string{
	"inode32": "memfs uses no inode number twice, so they may outgrow 32 bits; leave it out",
	"bind":    "that is for mount(8) alone: mount --bind", "rbind": "that is for mount(8) alone: mount --rbind",
	"move": "that is for mount(8) alone: mount --move",
	"loop": "memfs is mounted on no device; leave it out",
	"mand": "the kernel has no mandatory locks any more; leave it out",
}

// tmpfsQuota begins tmpfs's words for quotas.
var tmpfsQuota = []string{"quota", "usrquota", "grpquota"}

// hugeValues are what tmpfs takes for huge=.
var hugeValues = []string{"never", "always", "within_size", "advise"}

// setOptions does what one -o says. Both _ and - are taken in the names of flags.
func (o *mountOptions) setOptions(f *pflag.FlagSet, list string) error {
	options := strings.Split(list, ",")
	o.remount = o.remount || slices.Contains(options, "remount")
	for _, option := range options {
		if err := o.setOption(f, strings.TrimSpace(option)); err != nil {
			return err
		}
	}
	return nil
}

func (o *mountOptions) setOption(f *pflag.FlagSet, option string) error {
	key, value, hasValue := strings.Cut(option, "=")
	switch {
	case key == "", strings.HasPrefix(key, "x-"), strings.HasPrefix(key, "X-"):
		return nil
	case key == "huge" && !slices.Contains(hugeValues, value):
		return usageError("-o %s: there are %s, none of which changes anything here", option, strings.Join(hugeValues, ", "))
	case ignoredWords[key], key == "remount", o.remount && kernelWords[key]:
		return nil
	case (!hasValue || key == "user") && o.vfs.apply(key):
		return nil
	case key == "noswap" && !hasValue:
		return replaceFlag(f, "pagefile", "none")
	case key == "nr_blocks" && hasValue:
		return o.size.setBlocks(option, value)
	case key == "fsname":
		key = "source"
	}
	if why := refused(key); why != "" && !o.sloppy {
		return usageError("-o %s: %s", option, why)
	}
	name := strings.ReplaceAll(key, "_", "-")
	flag := f.Lookup(name)
	if flag == nil || name == "options" {
		if o.sloppy {
			return nil
		}
		return usageError("-o %s: unknown option; there are the flags of `memfs mount --help`, without the dashes, "+
			"and those of mount(8)", option)
	}
	if !hasValue {
		if flag.NoOptDefVal == "" {
			return usageError("-o %s: a value is missing: %s=…", option, key)
		}
		value = flag.NoOptDefVal
	}
	if err := replaceFlag(f, name, value); err != nil {
		return usageError("-o %s: %v", option, cause(err))
	}
	return nil
}

// refused is why an option that is known elsewhere is not taken; "" if it is none of those.
func refused(key string) string {
	for _, word := range tmpfsQuota {
		if strings.HasPrefix(key, word) {
			return "memfs has no quotas; size and nr_inodes bound the whole mount"
		}
	}
	return refusedWords[key]
}

// replaceFlag sets a flag; what was said before of one that may be given several times is forgotten.
func replaceFlag(f *pflag.FlagSet, name, value string) error {
	if list, ok := f.Lookup(name).Value.(pflag.SliceValue); ok {
		return list.Replace([]string{value})
	}
	return f.Set(name, value)
}

// cause is what is below pflag's words for a bad value.
func cause(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok && u.Unwrap() != nil {
		return u.Unwrap()
	}
	return err
}

// capacity is tmpfs's size: the most that files may hold, in bytes. 0 is no limit but what can be promised.
type capacity uint64

// mostPercent bounds a capacity in percent of RAM: it may be more than all of it, since there is the page file.
const mostPercent = 1e6

func (c *capacity) Set(text string) error {
	if strings.Trim(text, "0") == "" && text != "" {
		*c = 0
		return nil
	}
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(n >= 0 && n <= mostPercent) {
			return fmt.Errorf("not a percentage of RAM")
		}
		*c = capacity(n / 100 * float64(ramBytes())).roundUp()
		return nil
	}
	n, err := parseSize(text, ramBytes())
	*c = capacity(n).roundUp()
	return err
}

// setBlocks does what tmpfs's nr_blocks says: the same in pages.
func (c *capacity) setBlocks(option, value string) error {
	var n inodeCount
	if err := n.Set(value); err != nil || n != noInodeLimit && n > math.MaxInt64/mm.PageSize {
		return usageError("-o %s: not a number of pages; write a number, with K, M or G (binary) if you like", option)
	}
	if n == noInodeLimit {
		n = 0
	}
	*c = capacity(n * mm.PageSize)
	return nil
}

func (c capacity) roundUp() capacity { return (c + mm.PageSize - 1) &^ (mm.PageSize - 1) }

func (c *capacity) String() string {
	if *c == 0 {
		return ""
	}
	return formatSize(uint64(*c))
}

func (*capacity) Type() string { return "SIZE" }

// inodeCount is nr_inodes. 0 is the default.
type inodeCount uint64

// noInodeLimit is nr_inodes=0 in tmpfs's sense: only memory is the limit.
const noInodeLimit inodeCount = math.MaxUint64

func (n *inodeCount) Set(text string) error {
	digits := strings.TrimRight(text, "kKmMgG")
	shift := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30}
	by, known := shift[strings.ToLower(text[len(digits):])]
	value, err := strconv.ParseUint(digits, 10, 62)
	if err != nil || !known || value > math.MaxInt64>>by {
		return fmt.Errorf("not a count; write a number, with K, M or G (binary) if you like")
	}
	if *n = inodeCount(value << by); value == 0 {
		*n = noInodeLimit
	}
	return nil
}

func (n *inodeCount) String() string {
	switch *n {
	case 0:
		return ""
	case noInodeLimit:
		return "0"
	}
	return strconv.FormatUint(uint64(*n), 10)
}

func (*inodeCount) Type() string { return "N" }

// limit is what the memory manager is told for nr_inodes.
func (n inodeCount) limit(memory size) uint64 {
	if n == noInodeLimit {
		return uint64(memory) / 2 / mm.InodeBytes
	}
	return uint64(n)
}

// userID and groupID are numbers or names of passwd(5) and group(5).
type (
	userID  uint32
	groupID uint32
)

func (u *userID) Set(text string) error {
	n, err := accountID(text, "user", func() (string, error) {
		account, err := user.Lookup(text)
		if err != nil {
			return "", err
		}
		return account.Uid, nil
	})
	*u = userID(n)
	return err
}

func (u *userID) String() string { return strconv.FormatUint(uint64(*u), 10) }
func (*userID) Type() string     { return "USER" }

func (g *groupID) Set(text string) error {
	n, err := accountID(text, "group", func() (string, error) {
		group, err := user.LookupGroup(text)
		if err != nil {
			return "", err
		}
		return group.Gid, nil
	})
	*g = groupID(n)
	return err
}

func (g *groupID) String() string { return strconv.FormatUint(uint64(*g), 10) }
func (*groupID) Type() string     { return "GROUP" }

// accountID is the number that text is or stands for. The largest is nobody's: chown(2) takes it for "unchanged".
func accountID(text, kind string, lookup func() (string, error)) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err == nil && n != math.MaxUint32 {
		return uint32(n), nil
	}
	if err != nil && text != "" && strings.Trim(text, "0123456789") != "" {
		if number, err := lookup(); err == nil {
			if n, err := strconv.ParseUint(number, 10, 32); err == nil {
				return uint32(n), nil
			}
		}
	}
	return 0, fmt.Errorf("not a %s: write a number or a name that this system knows", kind)
}
