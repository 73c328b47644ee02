package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// Some tests are programs that run many times at once, and some of those may die of a SIGBUS: they are processes of
// their own, the test binary run once more with childVariable naming one of childPrograms. By hand:
//
//	go test -c ./integration && MEMFS_CHILD=fsx ./integration.test -file /mnt/x -seed 7 -ops 1000
const childVariable = "MEMFS_CHILD"

// childPrograms are the programs by name. What one returns is printed, and the exit status is then 1.
var childPrograms = map[string]func(args []string) error{
	"fsx":      fsxMain,
	"fsstress": fsstressMain,
}

func init() {
	name := os.Getenv(childVariable)
	if name == "" {
		return
	}
	program := childPrograms[name]
	if program == nil {
		fmt.Fprintf(os.Stderr, "%s=%s: no such program\n", childVariable, name)
		os.Exit(2)
	}
	if err := program(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// childLimit is how long a program of these may take.
const childLimit = 3 * time.Minute

// runChild runs one of childPrograms to its end. The error of one that fails has all that it wrote.
func runChild(name string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), childLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), childVariable+"="+name)
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, out.Bytes()[:min(out.Len(), 12<<10)])
	}
	return nil
}
