package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

func TestHear(t *testing.T) {
	for _, c := range []struct {
		said, err, warnings string
		ready               bool
	}{
		{"R\n", "", "", true},
		{"W one\nW two\nR\nE late\n", "", "one;two;", true},
		{"W one\nE /x: no\n", "/x: no", "one;", false},
		{"", "", "", false},
		{"panic: something\n", "", "", false},
	} {
		warnings := ""
		ready, err := hear(strings.NewReader(c.said), func(format string, args ...any) { warnings += fmt.Sprintf(format, args...) + ";" })
		if ready != c.ready || warnings != c.warnings || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%q: %v, %v, warnings %q", c.said, ready, err, warnings)
		}
	}
}

func TestParentPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &parentPipe{file: w}
	p.warn(fmt.Errorf("one\ntwo"))
	p.fail(fmt.Errorf("bad"))
	p.fail(fmt.Errorf("again"))
	p.warn(fmt.Errorf("late"))
	if text, _ := io.ReadAll(r); string(text) != "W one; two\nE bad\n" {
		t.Errorf("%q", text)
	}
	var nobody *parentPipe
	nobody.warn(fmt.Errorf("x"))
	nobody.fail(fmt.Errorf("x"))
	if err := nobody.ready(nil); err != nil {
		t.Error(err)
	}
}

func TestReadinessPipe(t *testing.T) {
	if p := readinessPipe(); p != nil {
		t.Error("a pipe out of nowhere")
	}
	for _, bad := range []string{"", "x", "-1", "0", "2"} {
		t.Setenv(readyEnv, bad)
		if p := readinessPipe(); p != nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestBeacon(t *testing.T) {
	device := fmt.Sprintf("test:%d", os.Getpid())
	m := mountEntry{device: device, options: "rw,user_id=4711"}
	if d := findDaemon(m); d != nil {
		t.Fatal("found a daemon that is not there")
	}
	b, err := light(device, beaconLine{PID: 1, Proc: "ctl", Version: "v"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := light(device, beaconLine{}); err == nil {
		t.Error("two beacons for one mount")
	}
	d := findDaemon(m)
	if d == nil {
		t.Fatal("not found")
	}
	if d.PID != os.Getpid() || d.Proc != "ctl" || d.Version != "v" {
		t.Errorf("%+v: the process id must be what the kernel says", d.beaconLine)
	}
	if d.wait(50 * time.Millisecond) {
		t.Error("this process has ended, it seems")
	}
	d.close()
	b.Close()
	if d := findDaemon(m); d != nil {
		t.Error("found after it was put out")
	}
}

func TestNewLog(t *testing.T) {
	path := t.TempDir() + "/log"
	for format, want := range map[string]string{"text": "warning two\nlines\n", "json": `"msg":"two\nlines"`} {
		log, file, err := newLog(&mountOptions{logFile: path, logLevel: "warn", logFormat: format})
		if err != nil {
			t.Fatal(err)
		}
		log.Info("not this")
		log.Warn("two\nlines")
		file.Close()
		text, _ := os.ReadFile(path)
		if !strings.Contains(string(text), want) || strings.Contains(string(text), "not this") {
			t.Errorf("%s: %q", format, text)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(logrus.New())
		for i := range 25 {
			if dropped, ok := l.take(); ok != (i < limiterBurst) || dropped != 0 {
				t.Fatalf("line %d: %v, %d", i, ok, dropped)
			}
		}
		time.Sleep(limiterPeriod)
		if dropped, ok := l.take(); !ok || dropped != 25-limiterBurst {
			t.Errorf("next period: %v, %d", ok, dropped)
		}
	})
}

func TestCapturingStderr(t *testing.T) {
	said, err := capturingStderr(func() error {
		fmt.Fprintln(os.Stderr, "a word")
		return io.EOF
	})
	if said != "a word\n" || err != io.EOF {
		t.Errorf("%q, %v", said, err)
	}
	s := &session{o: &mountOptions{mountpoint: "/x"}}
	for want, err := range map[string]error{
		"/x: cannot mount: fusermount3: no": s.mountError(io.EOF, "/usr/bin/fusermount3: no\n"),
		"/x: cannot mount: EOF":             s.mountError(io.EOF, "\n"),
		"/x: cannot mount: fusermount3: failed to open /dev/fuse: Permission denied; mount as root, or let all users open it (chmod 666 /dev/fuse)": s.mountError(
			io.EOF, "/usr/bin/fusermount3: failed to open /dev/fuse: Permission denied\n"),
		"/x: not permitted to mount: be root,": s.mountError(unix.EPERM, ""),
	} {
		if !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}
