// Command memfs mounts a memory manager as a file system, and looks after such mounts.
//
// It sits on top of everything: it reads the command line, makes the page file (mm/store), the memory manager (mm) and
// the mount (fs), writes the log, and leaves the rest to them. Verbs that look at a live mount are clients of its control
// files, as any script could be.
//
// # Processes
//
//	memfs mount DIR         parses, starts the daemon, waits until it is ready or has failed, and returns
//	  memfs mount DIR       the daemon: the same command line again, with a pipe to its parent (daemon.go, session.go)
//	    memfs launder DIR   its child, which opens files of the mount on its behalf (launder.go)
//	mount.memfs SPEC DIR    the same, started by mount(8) (helper.go)
//	memfs umount DIR        asks the kernel to unmount, then waits for the daemon to end (umount.go)
//	  memfs syscall …       a child for a system call that a dead or hung mount may never answer (probe.go)
//
// Every process of ours is started from /proc/self/exe, so that it works when the file has gone from the disk, as that of
// `go run` has.
//
// # Exit codes
//
// 0 done; 1 failed; 2 the command line is wrong; 3 (the daemon's) a bug was hit and logged. A failure is one line on
// standard error that begins with "memfs: " and says what was wrong and what would do. As a mount helper the program has
// the exit codes of mount(8) instead.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitBug    = 3
)

func main() {
	// Started from /proc/self/exe the kernel calls us "exe", which nobody would find in top or pgrep. It is advice only.
	os.WriteFile("/proc/self/comm", []byte("memfs"), 0)
	if name := helperName(os.Args[0]); name != "" {
		os.Exit(runHelper(name, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// exit ends the process where no way leads back to main.
var exit = os.Exit

// run does what the command line says and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	if isHelperCall(args, verbs(root)) {
		return runHelper("memfs", args, stdout, stderr)
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return exitDone
	}
	code := exitFailed
	var coded exitError
	if errors.As(err, &coded) {
		code = coded.code
		err = coded.err
	}
	if err != nil {
		fmt.Fprintf(stderr, "memfs: %s\n", oneLine(err))
	}
	return code
}

// exitError is an error that wants an exit code of its own. Without an error in it nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// usageError says that the command line is wrong.
func usageError(format string, args ...any) error {
	return exitError{exitUsage, fmt.Errorf(format, args...)}
}

// oneLine is an error's text on one line: joined errors have one each.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "memfs",
		Short: "A mountable memory manager",
		Long: "memfs mounts a file system whose files live in a fixed budget of memory, are paged out to a page file and\n" +
			"back in on the next touch, and can be watched page by page in the folder .proc of the mount.",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("no verb given; one of: %s", strings.Join(verbs(c), " "))
			}
			hint := ""
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("did you mean %s? ", near[0])
			}
			return usageError("unknown verb %q; %sthere are: %s", args[0], hint, strings.Join(verbs(c), " "))
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.Version = versionLine()
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if bad := (*pflag.InvalidValueError)(nil); errors.As(err, &bad) {
			return usageError("--%s %q: %s", bad.GetFlag().Name, bad.GetValue(), badValue(bad))
		}
		return usageError("%v (`%s --help` lists the flags)", err, c.CommandPath())
	})
	root.AddCommand(newMountCommand(), newUmountCommand(), newInfoCommand(), newTopCommand(), newPSCommand(), newMapsCommand(),
		newFilesCommand(), newPagesCommand(), newTrimCommand(), newFlushCommand(), newPrefetchCommand(), newPinCommand(), newProtectCommand(), newDEPCommand(),
		newNXCommand(),
		newCallCommand(), newRunCommand(), newCheckCommand(),
		newVersionCommand(), newLaunderCommand(), newSyscallCommand())
	root.InitDefaultHelpCmd()
	if c, _, err := root.Find([]string{"help"}); err == nil && c != root {
		c.Args = func(_ *cobra.Command, args []string) error {
			if about, _, err := root.Find(args); len(args) > 0 && (err != nil || about == root) {
				return usageError("help: unknown verb %q; there are: %s", strings.Join(args, " "), strings.Join(verbs(root), " "))
			}
			return nil
		}
	}
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil && c != root {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("completion: no shell given; there are: %s", strings.Join(shells(c), " "))
			}
			return usageError("completion %q: there are: %s", args[0], strings.Join(shells(c), " "))
		}
		for _, shell := range c.Commands() {
			shell.Args = noArguments
		}
	}
	return root
}

// badValue is what is wrong with a flag's value. pflag's own types say it in the words of strconv.
func badValue(bad *pflag.InvalidValueError) string {
	switch bad.GetFlag().Value.Type() {
	case "int":
		return "not a number"
	case "bool":
		return "neither true nor false"
	case "duration":
		return "not a time: write a number with its unit, such as 500ms, 2s or 1m"
	}
	return bad.Unwrap().Error()
}

// shells are those that `memfs completion` knows.
func shells(c *cobra.Command) (names []string) {
	for _, shell := range c.Commands() {
		names = append(names, shell.Name())
	}
	return names
}

func verbs(root *cobra.Command) (names []string) {
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "completion" {
			names = append(names, c.Name())
		}
	}
	return names
}

// oneArgument is the cobra.PositionalArgs of the verbs that take a mount point.
func oneArgument(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usageError("%s: no mount point given; usage: %s", c.Name(), c.UseLine())
	case len(args) > 1:
		return usageError("%s takes one mount point, but %d arguments were given: %s; usage: %s",
			c.Name(), len(args), strings.Join(args, " "), c.UseLine())
	case args[0] == "":
		return usageError("%s: the mount point is an empty name; usage: %s", c.Name(), c.UseLine())
	}
	return nil
}

func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("%s takes no arguments, but was given: %s", c.Name(), strings.Join(args, " "))
	}
	return nil
}
