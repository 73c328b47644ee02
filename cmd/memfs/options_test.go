package main

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"memfs/mm"
)

// The words of mount(8) are flags of mount(2), and what comes later wins.
func TestVFSFlags(t *testing.T) {
	for list, want := range map[string]uintptr{
		"": 0, "defaults": 0, "rw,suid,dev,exec,async": 0,
		"ro": unix.MS_RDONLY, "ro,rw": 0, "rw,ro": unix.MS_RDONLY, "ro,defaults": 0, "defaults,ro": unix.MS_RDONLY,
		"nosuid,nodev,noexec": unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nosuid,nodev,suid": unix.MS_NODEV,
		"noexec,exec": 0, "sync,dirsync": unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC, "sync,async": 0,
		"noatime": unix.MS_NOATIME, "noatime,atime": 0, "noatime,strictatime": unix.MS_STRICTATIME,
		"strictatime,relatime": unix.MS_RELATIME, "strictatime,noatime": unix.MS_NOATIME, "noatime,relatime": unix.MS_RELATIME,
		"nodiratime": unix.MS_NODIRATIME, "nodiratime,diratime": 0,
		"nodiratime,strictatime": unix.MS_NODIRATIME | unix.MS_STRICTATIME,
		"user":                   unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		"user,exec":              unix.MS_NOSUID | unix.MS_NODEV, "user=nobody,noexec,exec,suid,dev": 0,
		"nosymfollow": unix.MS_NOSYMFOLLOW, "lazytime,huge=always,mpol=bind:0,inode64,_netdev,comment=x,X-mount.mkdir": 0,
	} {
		o, err := parse("-o", list)
		if err != nil || o.vfs.bits != want {
			t.Errorf("-o %s: %#x, %v; want %#x", list, o.vfs.bits, err, want)
		}
	}
	if o, err := parse("-o", "ro,noatime", "-o", "rw"); err != nil || o.vfs.bits != unix.MS_NOATIME {
		t.Errorf("two lists: %+v, %v", o, err)
	}
}

func TestFlagsForUsers(t *testing.T) {
	for list, want := range map[string]string{
		"ro,noexec,noatime,sync": "", "defaults": "", "suid": "-o suid", "nosuid,nodev": "", "nosuid,dev": "-o dev",
		"suid,nosuid": "", "nosymfollow": "-o nosymfollow", "nosymfollow,symfollow": "", "user": "", "strictatime": "",
	} {
		o, err := parse("-o", list)
		if err != nil {
			t.Fatal(err)
		}
		switch err := o.vfs.forUser(); {
		case want == "" && err != nil:
			t.Errorf("-o %s: %v", list, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want+":")):
			t.Errorf("-o %s: %v; want a line on %s", list, err, want)
		}
	}
}

// tmpfs's words mean what they mean there.
func TestTmpfsWords(t *testing.T) {
	page := capacity(mm.PageSize)
	ram := ramBytes()
	for list, want := range map[string]capacity{
		"": 0, "size=0": 0, "size=1": page, "size=4097": 2 * page, "size=1m": 1 << 20, "size=1G,size=2M": 2 << 20,
		"nr_blocks=3": 3 * page, "nr_blocks=1k": 1024 * page, "nr_blocks=2k,size=1M": 1 << 20, "nr_blocks=0": 0,
		"size=200%": capacity(ram * 2).roundUp(),
	} {
		o := &mountOptions{}
		f := newMountFlags(o)
		if err := o.setOptions(f, list); err != nil || o.size != want {
			t.Errorf("-o %s: %d, %v; want %d", list, o.size, err, want)
		}
	}
	for list, want := range map[string]inodeCount{
		"": 0, "nr_inodes=0": noInodeLimit, "nr_inodes=7": 7, "nr_inodes=2k": 2048, "nr_inodes=1M": 1 << 20,
		"nr_inodes=1g": 1 << 30, "nr_inodes=1k,nr-inodes=5": 5,
	} {
		if o, err := parse("-o", list); err != nil || o.inodes != want {
			t.Errorf("-o %s: %d, %v; want %d", list, o.inodes, err, want)
		}
	}
	if n := noInodeLimit.limit(64 << 20); n != 32<<20/mm.InodeBytes {
		t.Errorf("no limit: %d inodes in 64M", n)
	}
	o, err := parse("-o", "uid=root,gid=root,fsname=thing,pagefile=/a,noswap")
	if err != nil || o.uid != 0 || o.gid != 0 || o.source != "thing" || !o.pageFile.none {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parse("-o", "noswap,pagefile=/a"); err != nil || o.pageFile != (pageFileSpec{path: "/a"}) {
		t.Errorf("noswap, then a page file: %+v, %v", o, err)
	}
}

func TestRefusedOptions(t *testing.T) {
	for list, want := range map[string]string{
		"bogus": "bogus: unknown", "bogus=1,ro": "bogus=1: unknown", "ro=1": "ro=1: unknown", "inode32": "outgrow",
		"loop": "no device", "usrquota": "quotas", "grpquota_block_hardlimit=1G": "quotas", "quota": "quotas",
		"huge": "within_size", "uid=": "not a user",
		"gid=4294967295": "not a group", "uid=-1": "not a user", "size=": "size=", "size=-1": "size=-1", "size=%": "percentage",
		"nr_blocks": "unknown", "nr_inodes=1x": "not a count", "nr_inodes=99999999999g": "not a count", "user_id=0": "unknown",
		"noswap=1": "unknown", "bind": "mount --bind",
	} {
		o := &mountOptions{}
		f := newMountFlags(o)
		err := o.setOptions(f, list)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "-o ") {
			t.Errorf("-o %s: %v; want %q", list, err, want)
		}
	}
	for _, list := range []string{"bogus,ro", "usrquota,ro", "ro,inode32"} {
		o := &mountOptions{sloppy: true}
		f := newMountFlags(o)
		o.sloppy = true
		if err := o.setOptions(f, list); err != nil || o.vfs.bits != unix.MS_RDONLY {
			t.Errorf("sloppy, -o %s: %v, %#x", list, err, o.vfs.bits)
		}
	}
	// What is known but wrong is wrong for the sloppy as well.
	o := &mountOptions{}
	f := newMountFlags(o)
	o.sloppy = true
	if err := o.setOptions(f, "memory=lots"); err == nil {
		t.Error("sloppy took memory=lots")
	}
}

// Where only --size is given, memory and page file are such that it fits.
func TestSizeFits(t *testing.T) {
	quarter := size(ramBytes() / 4 &^ (mebi - 1))
	for _, text := range []string{"1M", "16M", "40M", "100M"} {
		o, err := parse("--size=" + text)
		if err != nil {
			t.Fatal(err)
		}
		if pages, err := o.holds(o.memory, 0); err != nil || pages < o.sizePages() || o.memory > quarter {
			t.Errorf("--size %s: memory %s holds %d pages, %v", text, &o.memory, pages, err)
		}
		if o.memory > mm.MinMemory {
			if pages, _ := o.holds(o.memory-mebi, 0); pages >= o.sizePages() {
				t.Errorf("--size %s: memory %s is more than is needed", text, &o.memory)
			}
		}
		if slots, err := o.pageFileFor(); err != nil || slots != 0 {
			t.Errorf("--size %s: needs %d slots as well, %v", text, slots, err)
		}
	}
	for _, args := range []string{"--memory=16M --size=100M", "--memory=64M --size=4G", "--memory=16M --size=1G --nr-inodes=1k"} {
		o, err := parse(strings.Fields(args)...)
		if err != nil {
			t.Fatal(err)
		}
		slots, err := o.pageFileFor()
		if err != nil {
			t.Fatal(err)
		}
		if pages, err := o.holds(o.memory, slots); err != nil || pages < o.sizePages() {
			t.Errorf("%s: with %d slots it holds %d pages, %v", args, slots, pages, err)
		}
		if pages, _ := o.holds(o.memory, slots-1); pages >= o.sizePages() {
			t.Errorf("%s: %d slots are more than are needed", args, slots)
		}
	}
	if o, err := parse("--size=900%"); err != nil || o.memory != quarter {
		t.Errorf("a large --size: memory %s, %v; want a quarter of RAM", &o.memory, err)
	}
	if _, err := parse("--size=50%", "--pagefile=none"); err == nil || !strings.Contains(err.Error(), "say so with --memory") {
		t.Errorf("half of RAM without a page file: %v", err)
	}
	if o, err := parse("--size=0"); err != nil || o.memory != quarter {
		t.Errorf("--size 0: memory %s, %v", &o.memory, err)
	}
	for args, fits := range map[string]bool{
		"--memory=16M --size=9M --pagefile=none":          true,
		"--memory=16M --size=12M --pagefile=none":         false,
		"--memory=16M --size=100M --pagefile=/x,size=95M": true,
		"--memory=16M --size=100M --pagefile-size=60M":    false,
		"--memory=16M --size=100M":                        true,
		"--memory=16M --size=100G":                        false,
		"--memory=1M --size=100G":                         true, // that the memory is too small is said elsewhere
	} {
		o, err := parse(strings.Fields(args)...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.pageFileFor(); err == nil != fits {
			t.Errorf("%s: %v; fits %v", args, err, fits)
		}
	}
}

func TestAccounts(t *testing.T) {
	var u userID
	if err := u.Set("nobody"); err != nil || u == 0 {
		t.Errorf("nobody: %d, %v", u, err)
	}
	if err := u.Set("12"); err != nil || u != 12 || u.String() != "12" {
		t.Errorf("12: %d, %v", u, err)
	}
	o, err := parse()
	if err != nil || int(o.uid) != os.Geteuid() || int(o.gid) != os.Getegid() {
		t.Errorf("defaults: %+v, %v", o, err)
	}
}
