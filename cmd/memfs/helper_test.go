package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHelperName(t *testing.T) {
	for arg0, want := range map[string]string{
		"/sbin/mount.memfs": "mount.memfs", "mount.memfs": "mount.memfs", "/usr/sbin/mount.fuse.memfs": "mount.fuse.memfs",
		"memfs": "", "/usr/bin/memfs": "", "mount.fuse": "", "mount.memfs2": "", "": "",
	} {
		if got := helperName(arg0); got != want {
			t.Errorf("%q: %q, want %q", arg0, got, want)
		}
	}
}

// mount.fuse3 makes one form of command line; nothing that a person types is taken for it.
func TestHelperCall(t *testing.T) {
	verbs := verbs(newRootCommand())
	for line, want := range map[string]bool{
		"memfs /mnt -o rw,memory=1G": true, "none /mnt -o rw": true, "mount /mnt -o memory=1G": false,
		"memfs mnt -o rw": false, "memfs /mnt": false, "umont /mnt": false,
	} {
		if got := isHelperCall(strings.Fields(line), verbs); got != want {
			t.Errorf("memfs %s: %v", line, got)
		}
	}
}

func TestParseHelperCall(t *testing.T) {
	for _, line := range []string{
		"none /mnt -o rw,memory=32M -sfnv -t fuse.memfs",
		"-o rw,memory=32M none -t fuse.memfs -s -f /mnt -n -v",
		"-sfnv -orw,memory=32M -tfuse.memfs none /mnt",
		"-v -n -f -s -o rw -o memory=32M -t fuse.memfs -- none /mnt",
	} {
		c, err := parseHelperCall("mount.memfs", strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		o, err := c.mountOptions()
		if err != nil || c.source != "none" || c.dir != "/mnt" || !c.sloppy || !c.fake || !c.noMtab || !c.verbose ||
			c.types != "fuse.memfs" || o.memory != 32<<20 || !o.nonempty || !o.sloppy || o.source != "none" {
			t.Errorf("%s: %+v, %+v, %v", line, c, o, err)
			continue
		}
		// Without the namespace, the same call again.
		again, err := parseHelperCall("mount.memfs", c.arguments())
		if c.types = ""; err != nil || fmt.Sprint(again) != fmt.Sprint(c) {
			t.Errorf("%s: %v becomes %v, %v", line, c, again, err)
		}
		// What the daemon is started with says the same.
		daemon := &mountOptions{}
		f := newMountFlags(daemon)
		if err := f.Parse(o.args[1:]); err != nil || f.NArg() != 1 || f.Arg(0) != "/mnt" {
			t.Errorf("%s: the daemon's command line %q: %v", line, o.args, err)
			continue
		}
		if err := daemon.finish(f); err != nil || daemon.memory != 32<<20 || daemon.source != "none" ||
			!daemon.nonempty || !daemon.sloppy {
			t.Errorf("%s: the daemon's options %+v, %v", line, daemon, err)
		}
	}
}

func TestHelperExitCodes(t *testing.T) {
	dir := t.TempDir()
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"":                                  {mountUsage, "0 names"},
		"none":                              {mountUsage, "1 names"},
		"none DIR more":                     {mountUsage, "3 names"},
		"none DIR -x":                       {mountUsage, "-x"},
		"none DIR -o bogus":                 {mountUsage, "bogus: unknown"},
		"none DIR -o memory=lots":           {mountUsage, "memory=lots"},
		"none DIR -o memory=lots -s":        {mountUsage, "memory=lots"},
		"none DIR -N /no/such/namespace":    {mountSystem, "/no/such/namespace"},
		"none DIR -o bogus -f":              {mountUsage, "bogus"},
		"none DIR -o bogus -f -s":           {mountDone, ""},
		"none DIR -o memory=32M -f":         {mountDone, ""},
		"none DIR/none -o memory=32M":       {mountFailed, "no such directory"},
		"none DIR -o memory=32M,remount,ro": {mountFailed, "nothing is mounted there"},
		"none DIR -o memory=1000T":          {mountFailed, "more than the RAM"},
	} {
		if _, err := mountRight(); err != nil && want.code == mountFailed {
			continue // it would say just that
		}
		var out, errOut bytes.Buffer
		code := runHelper("mount.memfs", strings.Fields(strings.ReplaceAll(line, "DIR", dir)), &out, &errOut)
		lines := 1
		if want.code == mountDone {
			lines = 0
		}
		text := errOut.String()
		if code != want.code || strings.Count(text, "\n") != lines || !strings.Contains(text, want.text) ||
			lines == 1 && !strings.HasPrefix(text, "mount.memfs: ") {
			t.Errorf("mount.memfs %s: exit code %d, %q; want %d with %q", line, code, text, want.code, want.text)
		}
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("x"), mountFailed}, {errInterrupted, mountInterrupted}, {exitError{exitBug, errors.New("x")}, mountBug},
		{systemError{errors.New("x")}, mountSystem}, {fmt.Errorf("x: %w", errNotPermitted), mountUsage},
		{usageError("x"), mountUsage},
	} {
		if got := helperExit(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	var out bytes.Buffer
	code := runHelper("mount.memfs", []string{"none", dir, "-fv", "-o", "memory=32M"}, &out, &out)
	if code != 0 || !strings.Contains(out.String(), "32M") {
		t.Errorf("-fv: %d, %q", code, out.String())
	}
}

// A service manager is told over a socket with a path or an abstract name, and children do not inherit it.
func TestServiceManager(t *testing.T) {
	for _, address := range []string{t.TempDir() + "/notify", "@memfs-test-" + fmt.Sprint(os.Getpid())} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv(notifyEnv, address)
		m := findServiceManager()
		if err := m.tell("READY=1", "STATUS=a b"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "READY=1\nSTATUS=a b" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		if got, ok := os.LookupEnv(notifyEnv); ok {
			t.Errorf("children would speak to %q", got)
		}
	}
	for _, none := range []string{"", "relative", "vsock:2:1"} {
		t.Setenv(notifyEnv, none)
		if m := findServiceManager(); m != nil || m.tell("READY=1") != nil {
			t.Errorf("%q is taken for a socket", none)
		}
	}
	t.Setenv(notifyEnv, "/no/such/socket")
	if err := findServiceManager().tell("READY=1"); err == nil {
		t.Error("a socket that is not there was told")
	}
}

func TestServiceMain(t *testing.T) {
	for _, c := range []struct {
		socket, pid string
		want        bool
	}{
		{"", "", false}, {"/run/x", "", true}, {"/run/x", fmt.Sprint(os.Getpid()), true}, {"/run/x", "1", false},
		{"", fmt.Sprint(os.Getpid()), false},
	} {
		t.Setenv(notifyEnv, c.socket)
		t.Setenv(mainPIDEnv, c.pid)
		if got := serviceMain(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// The mount table's words are the flags again.
func TestFlagsOfMount(t *testing.T) {
	for line, want := range map[string]uintptr{
		"rw,relatime - fuse.memfs x rw":                                unix.MS_RELATIME,
		"rw - fuse.memfs x rw":                                         unix.MS_STRICTATIME,
		"rw,noatime,nodiratime - fuse.memfs x rw":                      unix.MS_NOATIME | unix.MS_NODIRATIME,
		"ro,nosuid,nodev,noexec,relatime shared:5 - fuse.memfs x rw":   unix.MS_RDONLY | secureFlags | unix.MS_RELATIME,
		"rw,relatime - fuse.memfs x ro,sync,dirsync,user_id=0":         unix.MS_RDONLY | unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_RELATIME,
		"rw,nosymfollow,relatime master:1 - fuse.memfs x rw,user_id=0": unix.MS_NOSYMFOLLOW | unix.MS_RELATIME,
	} {
		table := parseMountTable([]byte("36 35 98:0 / /mnt " + line + "\n"))
		if len(table) != 1 || table[0].flags() != want {
			t.Errorf("%s: %#x, want %#x", line, table[0].flags(), want)
		}
	}
}

// TestFollowRemounts: the flags of a mount are told of after a remount, and the watch ends when it is told to.
func TestFollowRemounts(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer unix.Unmount(dir, 0)
	table, err := mountTable()
	if err != nil {
		t.Fatal(err)
	}
	m, found := topMount(table, dir)
	if !found {
		t.Fatal("not in the table")
	}
	told := make(chan uintptr, 10)
	stop, err := followRemounts(m, func(flags uintptr) { told <- flags })
	if err != nil {
		t.Fatal(err)
	}
	for _, flags := range []uintptr{unix.MS_NOATIME, unix.MS_STRICTATIME, unix.MS_RELATIME | unix.MS_NODIRATIME} {
		if err := unix.Mount("none", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
		if got := <-told; got != flags {
			t.Errorf("told %#x, want %#x", got, flags)
		}
	}
	stop()
	if len(told) > 0 {
		t.Errorf("told once too often: %#x", <-told)
	}
}
