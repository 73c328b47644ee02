package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

// asMemfsEnv makes the test binary be memfs, for what starts itself anew.
const asMemfsEnv = "_MEMFS_TEST_AS_MEMFS"

func TestMain(m *testing.M) {
	if os.Getenv(asMemfsEnv) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv(asMemfsEnv, "1")
	os.Exit(m.Run())
}

func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		want string // in the message
	}{
		{"", exitUsage, "mount"},
		{"frobnicate", exitUsage, "frobnicate"},
		{"moun", exitUsage, "did you mean mount"},
		{"mount", exitUsage, "mount point"},
		{"mount a b", exitUsage, "a b"},
		{"mount --bogus DIR", exitUsage, "--bogus"},
		{"mount --memory 12Q DIR", exitUsage, `--memory "12Q"`},
		{"mount --memory 0 DIR", exitUsage, "not above zero"},
		{"mount --memory 1M DIR", exitFailed, "too small"},
		{"mount --memory 8000T DIR", exitFailed, "more than the RAM"},
		{"mount --pagefile a --pagefile none DIR", exitUsage, "contradicts"},
		{"mount --pagefile a --pagefile b,prio=-1 DIR", exitUsage, "no priority"},
		{"mount --memory 16M --min 14M DIR", exitFailed, "more than the"},
		{"mount --memory 16M --min 8000T DIR", exitFailed, "cannot be had"},
		{"mount --pagefile /tmp,size=3M-1M DIR", exitUsage, "MIN is above MAX"},
		{"mount --pagefile /tmp,speed=3 DIR", exitUsage, "speed=3"},
		{"mount --pagefile none --pagefile-size 1G DIR", exitUsage, "contradicts"},
		{"mount --pagefile /no/such/place DIR", exitFailed, "/no/such: no such directory"},
		{"mount --mode 9 DIR", exitUsage, "octal"},
		{"mount --proc a/b DIR", exitUsage, "--proc"},
		{"mount --host-share 2 DIR", exitUsage, "share"},
		{"mount --log-level loud DIR", exitUsage, "loud"},
		{"mount --log-format xml DIR", exitUsage, "xml"},
		{"mount --log-file /no/such/place DIR", exitFailed, "/no/such/place"},
		{"mount --inject burn DIR", exitUsage, "burn"},
		{"mount -o memory DIR", exitUsage, "a value is missing"},
		{"mount -o colour=red DIR", exitUsage, "colour=red: unknown option"},
		{"mount -o remount,ro DIR", exitFailed, "nothing is mounted there"},
		{"mount -o ro,usrquota DIR", exitUsage, "no quotas"},
		{"mount -o huge=sometimes DIR", exitUsage, "within_size"},
		{"mount -o nr_blocks=5x DIR", exitUsage, "nr_blocks=5x: not a number of pages"},
		{"mount --size 5x DIR", exitUsage, `--size "5x"`},
		{"mount --size 99999P DIR", exitUsage, "too large"},
		{"mount --nr-inodes many DIR", exitUsage, "not a count"},
		{"mount --uid no-such-user DIR", exitUsage, "not a user"},
		{"mount --memory 16M --size 64M --pagefile none DIR", exitFailed, "does not fit"},
		{"mount --memory 16M --size 200M --pagefile-size 100M DIR", exitFailed, "a page file of 100M holds"},
		{"mount --memory 16M --size 900G DIR", exitFailed, "can keep records of"},
		{"mount DIR/none", exitFailed, "no such directory"},
		{"umount", exitUsage, "mount point"},
		{"umount DIR", exitFailed, "nothing is mounted there"},
		{"umount /proc", exitFailed, "not a memfs mount, but proc"},
		{"info DIR", exitFailed, "not in a memfs mount"},
		{"check DIR/none", exitFailed, "no such file"},
		{"trim DIR DIR", exitFailed, "not in a memfs mount"},
		{"version 1", exitUsage, "no arguments"},
		{"top -n some DIR", exitUsage, `--rounds "some": not a number`},
		{"umount --timeout 5 DIR", exitUsage, "such as 500ms"},
		{"files -n -1 DIR", exitUsage, "--lines -1"},
		{"completion", exitUsage, "bash"},
		{"help frobnicate", exitUsage, "frobnicate"},
		{"nx --optin a/b DIR", exitUsage, "not the name of a program"},
		{"completion csh", exitUsage, `"csh"`},
		{"completion bash zsh", exitUsage, "zsh"},
	} {
		args := strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))
		if len(args) > 0 && args[0] == "mount" && c.code == exitFailed {
			if _, err := mountRight(); err != nil {
				continue // it would say just that
			}
			// In front: what the daemon would find out is found out here.
			t.Setenv(flusherEnv, "1")
			args = append([]string{"mount", "-f"}, args[1:]...)
		}
		var out, errOut bytes.Buffer
		code := run(args, &out, &errOut)
		text := errOut.String()
		if code != c.code || !strings.HasPrefix(text, "memfs: ") || strings.Count(text, "\n") != 1 || !strings.Contains(text, c.want) {
			t.Errorf("memfs %s: exit code %d, %q; want %d and one line with %q", c.args, code, text, c.code, c.want)
		}
		if out.Len() > 0 {
			t.Errorf("memfs %s: printed %q", c.args, out.String())
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range []string{"--help", "mount --help", "version"} {
		var out, errOut bytes.Buffer
		if code := run(strings.Fields(args), &out, &errOut); code != exitDone || out.Len() == 0 || errOut.Len() > 0 {
			t.Errorf("memfs %s: exit code %d, %q, %q", args, code, out.String(), errOut.String())
		}
	}
	if text := newRootCommand().UsageString(); strings.Contains(text, "launder") || strings.Contains(text, "syscall") {
		t.Error("the usage shows verbs that are not for people")
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(errors.Join(errors.New("one\n"), errors.New("two"))); got != "one; two" {
		t.Errorf("%q", got)
	}
}
